from __future__ import annotations

import pytest
import torch

from mmrazor_brecq.algorithms import BRECQ
from mmrazor_brecq.mixed_precision import uniform
from mmrazor_brecq.reconstruction import NearestRounding


@pytest.fixture
def uniform_models(toy, batches):
    """Return a function that builds frozen uniform models of a toy, by their
    bits, and its teacher.
    """

    def build(name, bits=(2, 4, 8), kinds=('weight',), **quantization):
        model = BRECQ(toy(name), quantization).eval()
        models = {b: uniform(model, b, kinds) for b in bits}
        for one in models.values():
            teacher = one.prepare(batches[0][:1])
            for _ in one.reconstruct(teacher, batches, 0, NearestRounding()):
                pass
        return models, teacher

    return build


@pytest.fixture
def prepared(toy):
    """Return a function that builds a prepared model of a toy."""

    def build(name, **quantization):
        model = BRECQ(toy(name), quantization).eval()
        model.prepare(torch.zeros(1, 3, 8, 8))
        return model

    return build
