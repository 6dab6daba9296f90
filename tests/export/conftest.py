from __future__ import annotations

import pytest
import torch

from mmrazor_brecq.algorithms import BRECQ

NEAREST = dict(type='NearestRounding', batch_size=8)


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(48, 3, 8, 8, generator=generator)


@pytest.fixture
def quantized(toy, images):
    """Builds a quantized toy network by its name."""

    def build(name, weight=8, activation=8, symmetric=False):
        grid = dict(symmetric=symmetric)
        model = BRECQ(
            toy(name),
            dict(
                weight=dict(grid, bits=weight),
                activation=activation and dict(grid, bits=activation),
            ),
            reconstructor=NEAREST,
        ).eval()
        teacher = model.prepare(images[:1])
        list(model.reconstruct(teacher, list(images.split(16))))
        return model

    return build
