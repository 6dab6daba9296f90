from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from mmrazor_brecq.activations import CachedBatches
from mmrazor_brecq.algorithms import BRECQ
from mmrazor_brecq.layers import quant_layers
from mmrazor_brecq.reconstruction import BlockReconstructor, UnitData
from mmrazor_brecq.reconstruction.positions import positions


class Shared(nn.Module):
    """A layer that is called on maps of two sizes, as heads of detectors."""

    def __init__(self):
        super().__init__()
        self.head = nn.Conv2d(3, 5, 1)

    def forward(self, x):
        return self.head(x).sum((2, 3)) + self.head(x[..., ::2, ::2]).sum(
            (2, 3)
        )


def prepared(network, images):
    """Return the only unit of a network and the activations around it."""
    model = BRECQ(network.eval(), partition=dict(type='NetworkPartition'))
    teacher = model.prepare(images[:1])
    (unit,) = model.units
    inputs = CachedBatches([((images,), {})], [len(images)])
    with torch.no_grad():
        targets = CachedBatches([teacher(images)], [len(images)])
    return unit, UnitData(inputs, inputs, targets, held_out=1)


@pytest.mark.parametrize(
    ('network', 'shape', 'expected'),
    [
        (nn.Conv2d(3, 4, 3, padding=1), (3, 8, 6), 48),
        (nn.Conv2d(4, 4, 3, stride=2, groups=4), (4, 9, 9), 16),
        (nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 8)), (3, 8, 8), 1),
        (nn.Conv1d(3, 4, 1), (3, 7), 7),
        (nn.Linear(6, 4), (5, 6), 5),
        (nn.Linear(6, 4), (6,), 1),
        (Shared(), (3, 8, 8), 64 + 16),
    ],
)
def test_the_layer_with_the_fewest_positions_counts(network, shape, expected):
    unit, data = prepared(nn.Sequential(network), torch.randn(6, *shape))
    assert positions(unit, data) == expected


def test_a_unit_whose_layers_are_frozen_has_one():
    unit, data = prepared(
        nn.Sequential(nn.Conv2d(3, 4, 1)), torch.ones(6, 3, 4, 4)
    )
    for layer in quant_layers(unit.module).values():
        layer.weight_quantizer.fit(layer.stored_weight)
        layer.freeze()
    assert positions(unit, data) == 1


@pytest.mark.parametrize('enough', [1, 100, 128, 150, 10**6])
def test_large_maps_learn_from_fewer_images_at_a_time(enough, monkeypatch):
    drawn = []
    randint = torch.randint

    def spied(high, size=(), **kwargs):
        drawn.append(size)
        return randint(high, size, **kwargs)

    unit, data = prepared(
        nn.Sequential(nn.Conv2d(3, 4, 3, padding=1)), torch.randn(9, 3, 8, 8)
    )
    learner = BlockReconstructor(
        2,
        batch_size=4,
        max_positions=enough,
        negligible=0.0,
        objective=dict(type='MSE'),
    )
    monkeypatch.setattr(torch, 'randint', spied)
    learner(unit, data, torch.Generator().manual_seed(0))
    batches = {size for size in drawn if size}
    assert batches == {(min(4, math.ceil(enough / 64)),)}
