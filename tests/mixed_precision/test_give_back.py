"""What is given back costs least among all that is predicted to suffice."""

from __future__ import annotations

import itertools
import random
from functools import cache

import pytest
import torch

from mmrazor_brecq.algorithms import BRECQ
from mmrazor_brecq.engine.sensitivity_run import MixedPrecision, find_space
from mmrazor_brecq.mixed_precision import (
    BitOperations,
    BitSearch,
    GiveBack,
    Pairwise,
    WeightBytes,
)

WIDTHS = 2, 4, 8


@cache
def space_of(toy, kinds):
    """The choices in a toy; they are not changed."""
    settings = MixedPrecision(bits=WIDTHS, kinds=list(kinds))
    model = BRECQ(toy('inverted')).eval()
    return settings, find_space(model, settings, torch.zeros(1, 3, 8, 8))


def random_loss(choices):
    rng, loss = random.Random(0), Pairwise()
    for choice in choices:
        size = 10 ** rng.uniform(-2, 1)
        for bits in WIDTHS:
            loss.add(choice.name, bits, size * 4.0**-bits)
    for one, two in itertools.combinations(choices, 2):
        if one.unit == two.unit:
            for a, b in itertools.product(WIDTHS, WIDTHS):
                value = rng.uniform(-0.01, 0.01) * 4.0 ** -max(a, b)
                loss.add_pair((one.name, two.name), (a, b), value)
    return loss


@pytest.fixture
def give_back(toy):
    """Builds what chooses bits for a toy, with losses drawn at random."""

    def build(kinds=('weight',), start=None, **kwargs):
        settings, space = space_of(toy, kinds)
        search = BitSearch(
            settings,
            space.shape,
            space.bits,
            space.choices,
            random_loss(space.choices),
            [WeightBytes(), BitOperations()],
        )
        start = start or dict(weight=2, activation=2)
        return GiveBack(search, start, **kwargs)

    return build


def test_the_cheapest_bits_that_suffice_are_found(give_back):
    found = give_back()
    before = found.predicted
    found.give(1.0, 8.0)
    limit = before * 0.8 / 8
    assert 0 < found.predicted <= limit * (1 + 1e-6)
    names = list(found.bits)
    costs = [
        found.cost(dict(zip(names, bits)))
        for bits in itertools.product(WIDTHS, repeat=len(names))
        if found.loss(dict(zip(names, bits))) <= limit
    ]
    assert found.cost(found.bits) == min(costs) and found.gap <= 1e-5
    assert not found.exhausted


def test_what_did_not_suffice_gets_more_and_the_last_one_all(give_back):
    found = give_back()
    costs = [found.cost(found.bits)]
    for last in False, False, True:
        found.give(0.5, 0.7, last)
        costs.append(found.cost(found.bits))
    assert costs == sorted(set(costs)) and len(costs) == 4
    assert found.exhausted and set(found.bits.values()) == {8}
    found.give(0.5, 0.7)  # Nothing is left to give.
    assert found.exhausted


@pytest.mark.parametrize('drop', [float('inf'), float('nan')])
def test_a_broken_model_gets_everything(give_back, drop):
    found = give_back()
    found.give(0.5, drop)
    assert found.exhausted


def test_nobody_gets_fewer_bits_than_to_begin_with(give_back):
    kinds = 'weight', 'activation'
    found = give_back(kinds=kinds, start=dict(weight=2, activation=4))
    found.give(1.0, 2.0)
    assert found.cost_name == 'bops'
    for name, bits in found.bits.items():
        assert bits >= (4 if name.endswith('activation') else 2)


def test_a_float_weight_has_a_float_input(give_back):
    found = give_back(kinds=('weight', 'activation'), up_to_float=True)
    found.give(1.0, 20.0)
    seen = set()
    for part in 1.0, 0.3, 0.01, 1e-4:
        found.give(part, 1.0)
        for weight, activation in found.layer_bits.values():
            assert weight != 32 or activation == 32
            seen |= {weight}
    assert 32 in seen
    found.give(0.0, 1.0)
    assert found.predicted == 0 and found.exhausted
