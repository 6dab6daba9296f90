from __future__ import annotations

import pytest

from mmrazor_brecq.objectives import FisherDiag, FisherLowRank
from mmrazor_brecq.reconstruction import (
    BlockReconstructor,
    NearestRounding,
    NetworkRefiner,
)

COUNTS = [
    (NearestRounding, 'batch_size'),
    (NearestRounding, 'fit_images'),
    (BlockReconstructor, 'iterations'),
    (BlockReconstructor, 'batch_size'),
    (NetworkRefiner, 'iterations'),
    (NetworkRefiner, 'batch_size'),
    (NetworkRefiner, 'draws'),
    (FisherDiag, 'images'),
    (FisherLowRank, 'images'),
    (FisherLowRank, 'rank'),
]
AMOUNTS = [
    (BlockReconstructor, 'rounding_lr'),
    (BlockReconstructor, 'weight_scale_lr'),
    (BlockReconstructor, 'activation_scale_lr'),
    (BlockReconstructor, 'penalty'),
    (BlockReconstructor, 'warmup'),
    (BlockReconstructor, 'negligible'),
    (NetworkRefiner, 'rounding_lr'),
    (NetworkRefiner, 'weight_scale_lr'),
    (NetworkRefiner, 'activation_scale_lr'),
    (NetworkRefiner, 'bias_lr'),
    (FisherDiag, 'temper'),
    (FisherLowRank, 'temper'),
    (FisherLowRank, 'even'),
]


@pytest.mark.parametrize('value', [0, -5, 2.5, '2', None])
@pytest.mark.parametrize(('owner', 'name'), COUNTS)
def test_a_count_is_an_integer_of_1_or_more(owner, name, value):
    with pytest.raises(
        ValueError,
        match=f'^{name}={value!r}, expected.*`{name}` of {owner.__name__}$',
    ):
        owner(**{name: value})
    assert getattr(owner(**{name: 1}), name) == 1


@pytest.mark.parametrize(
    'value', [-1, -0.1, float('nan'), float('inf'), '0.1', None]
)
@pytest.mark.parametrize(('owner', 'name'), AMOUNTS)
def test_an_amount_is_finite_and_not_negative(owner, name, value):
    with pytest.raises(
        ValueError,
        match=f'^{name}={value!r}, expected.*`{name}` of {owner.__name__}$',
    ):
        owner(**{name: value})
    assert getattr(owner(**{name: 0}), name) == 0
