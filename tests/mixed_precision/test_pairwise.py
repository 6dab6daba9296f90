from __future__ import annotations

import itertools
import random

import pytest

from mmrazor_brecq.mixed_precision import Pairwise


@pytest.fixture
def function():
    """Return a function of three choices at 2 and 4 bits."""
    result = Pairwise(constant=0.5)
    values = iter(range(1, 100))
    for name, b in itertools.product('abc', (2, 4)):
        result.add(name, b, float(next(values)))
    for pair in (('a', 'b'), ('b', 'c')):
        for bits in itertools.product((2, 4), repeat=2):
            result.add_pair(pair, bits, float(next(values)))
    return result


def test_a_value_is_the_sum_of_all_terms(function):
    bits = dict(a=2, b=4, c=2)
    alone = sum(function.alone[name][b] for name, b in bits.items())
    pairs = function.pairs['a', 'b'][2, 4] + function.pairs['b', 'c'][4, 2]
    assert function(bits) == 0.5 + alone + pairs
    assert function.diagonal()(bits) == 0.5 + alone


def test_a_pair_is_the_same_in_either_order(function):
    before = function(dict(a=2, b=4, c=4))
    function.add_pair(('b', 'a'), (4, 2), 10.0)
    assert function(dict(a=2, b=4, c=4)) == before + 10
    assert len(function.pairs) == 2


def test_restricted_is_the_same_function_of_fewer_choices(function):
    """Choices share their bits, whether they are a pair or not."""
    for leaders in (
        dict(a='a', b='a', c='c'),
        dict(a='a', b='b', c='a'),
        dict(a='a', b='a', c='a'),
    ):
        free = set(leaders.values())
        less = function.restricted(leaders, {name: (2, 4) for name in free})
        assert set(less.alone) == free
        for values in itertools.product((2, 4), repeat=len(free)):
            bits = dict(zip(sorted(free), values))
            whole = {name: bits[leader] for name, leader in leaders.items()}
            assert less(bits) == pytest.approx(function(whole))


def test_restricted_keeps_only_allowed_bits(function):
    allowed = dict(a=(4,), b=(2, 4), c=(2,))
    less = function.restricted({name: name for name in 'abc'}, allowed)
    assert {name: tuple(t) for name, t in less.alone.items()} == allowed
    bits = dict(a=4, b=2, c=2)
    assert less(bits) == function(bits)


def test_bounded_is_never_below_the_worst_choice_alone():
    """For units of any size, however negative the pairs are."""
    rng = random.Random(0)
    for n in (2, 3, 4, 6):
        names = [str(i) for i in range(n)]
        wild = Pairwise()
        for name, b in itertools.product(names, (2, 4)):
            wild.add(name, b, 10 ** rng.uniform(-3, 0))
        for pair in itertools.combinations(names, 2):
            for bits in itertools.product((2, 4), repeat=2):
                wild.add_pair(pair, bits, -10.0)
        bounded = wild.bounded()
        for values in itertools.product((2, 4), repeat=n):
            bits = dict(zip(names, values))
            worst = max(wild.alone[name][b] for name, b in bits.items())
            assert wild(bits) < 0
            assert bounded(bits) >= worst * (1 - 1e-9)


def test_bounded_keeps_pairs_within_the_bound():
    small = Pairwise(alone=dict(a={2: 1.0}, b={2: 0.5}))
    for value in (-0.4, 0.0, 3.0):
        small.pairs = {('a', 'b'): {(2, 2): value}}
        assert small.bounded() == small
