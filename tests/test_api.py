from __future__ import annotations

import math

import pytest
import torch

import mmrazor_brecq
from mmrazor_brecq.layers import quant_layers

BRIEF = dict(type='BlockReconstructor', iterations=2)


@pytest.mark.parametrize('count', [2, 3, 64, 65])
def test_as_many_images_as_there_are(count, toy, generator, warnings_log):
    """Fewer than a batch of 64 will do, with a word of warning."""
    images = torch.randn(count, 3, 8, 8, generator=generator)
    model, report = mmrazor_brecq.quantize(
        toy('residual'), images, reconstructor=BRIEF
    )

    assert all(layer.frozen for layer in quant_layers(model).values())
    assert all(unit['after'] < math.inf for unit in report['units'])
    few = [line for line in warnings_log if line.startswith(f'{count} images')]
    assert len(few) == (count < 64)


@pytest.mark.parametrize('count', [0, 1])
def test_an_image_to_learn_from_and_one_to_judge_by(count, toy):
    images = torch.zeros(count, 3, 8, 8)
    with pytest.raises(ValueError, match=f'{count} images, expected more'):
        mmrazor_brecq.quantize(toy('residual'), images)
