from __future__ import annotations

import itertools
import random
import time

import pytest

from mmrazor_brecq.mixed_precision import (
    ExactSearch,
    GeneticSearch,
    Infeasible,
    Pairwise,
    Problem,
)

BIT_WIDTHS = (2, 3, 4, 5, 6, 7, 8)


def network(layers, per_unit, seed, bit_widths=BIT_WIDTHS):
    """Return loss, bytes and bit widths of an artificial network.

    Losses fall by 4 with every bit, differ by orders of magnitude between
    layers, and interact within units, with either sign.
    """
    rng = random.Random(seed)
    loss, cost = Pairwise(), Pairwise(constant=1000.0)
    scale = {str(i): 10 ** rng.uniform(-2, 1) for i in range(layers)}
    for name in scale:
        parameters = int(10 ** rng.uniform(2, 5))
        for b in bit_widths:
            value = scale[name] * 4.0**-b * rng.uniform(0.8, 1.2)
            loss.add(name, b, value)
            cost.add(name, b, parameters * b / 8)
    names = list(scale)
    for start in range(0, layers, per_unit):
        unit = names[start : start + per_unit]
        for one, two in itertools.combinations(unit, 2):
            for a, b in itertools.product(bit_widths, bit_widths):
                size = (scale[one] * scale[two] * 4.0 ** -(a + b)) ** 0.5
                value = rng.uniform(-0.5, 0.5) * size
                loss.add_pair((one, two), (a, b), value)
    return loss, cost, {name: bit_widths for name in names}


def limit(cost, names, bits):
    return cost(dict.fromkeys(names, bits)) * 1.1


def brute_force(problem):
    names = list(problem.bit_widths)
    return min(
        problem.loss(dict(zip(names, bits)))
        for bits in itertools.product(*problem.bit_widths.values())
        if problem.keeps(dict(zip(names, bits)))
    )


@pytest.mark.parametrize('seed', range(4))
def test_exact_search_finds_the_best_of_all(seed):
    loss, cost, bit_widths = network(6, 3, seed, bit_widths=(2, 4, 8))
    problem = Problem(loss, bit_widths, [(cost, limit(cost, bit_widths, 4))])
    solution = ExactSearch()(problem)
    assert problem.keeps(solution.bits)
    assert solution.loss == pytest.approx(problem.loss(solution.bits))
    assert solution.loss == pytest.approx(brute_force(problem), rel=1e-5)
    assert solution.gap <= 1e-5


def test_costs_of_pairs_and_several_limits_are_kept():
    """Bit operations multiply the bits of weight and input."""
    loss, cost, bit_widths = network(6, 2, 0, bit_widths=(2, 4, 8))
    product = Pairwise()
    for one, two in (('0', '1'), ('3', '2'), ('4', '5')):
        for a, b in itertools.product((2, 4, 8), repeat=2):
            product.add_pair((one, two), (a, b), 100.0 * a * b)
    limits = [(cost, limit(cost, bit_widths, 4)), (product, 5000.0)]
    problem = Problem(loss, bit_widths, limits)
    solution = ExactSearch()(problem)
    assert product(solution.bits) <= 5000
    assert solution.loss == pytest.approx(brute_force(problem), rel=1e-5)
    alone = ExactSearch()(Problem(loss, bit_widths, limits[:1]))
    assert alone.loss < solution.loss


@pytest.mark.parametrize('bits', [3, 4, 6])
def test_exact_is_never_worse_than_genetic_and_quick(bits):
    loss, cost, bit_widths = network(60, 3, 0)
    problem = Problem(
        loss, bit_widths, [(cost, limit(cost, bit_widths, bits))]
    )
    start = time.process_time()  # CPU time of this process.
    exact = ExactSearch()(problem)
    assert time.process_time() - start < 10
    genetic = GeneticSearch(generations=10)(problem)
    assert problem.keeps(exact.bits) and problem.keeps(genetic.bits)
    assert exact.loss <= genetic.loss
    assert exact.gap < 1e-4


def test_genetic_search_comes_close_and_better_with_time():
    loss, cost, bit_widths = network(8, 2, 0, bit_widths=(2, 4, 8))
    problem = Problem(loss, bit_widths, [(cost, limit(cost, bit_widths, 4))])
    few = GeneticSearch(generations=1)(problem)
    many = GeneticSearch(generations=50)(problem)
    best = brute_force(problem)
    assert best * (1 - 1e-9) <= many.loss <= few.loss
    assert many.loss < 1.5 * best
    assert many.gap is None
    assert GeneticSearch(generations=50)(problem).bits == many.bits


@pytest.mark.parametrize('searcher', [ExactSearch(), GeneticSearch()])
def test_limits_that_cannot_be_kept_are_infeasible(searcher):
    loss, cost, bit_widths = network(4, 2, 0)
    least = cost(dict.fromkeys(bit_widths, 2))
    with pytest.raises(Infeasible):
        searcher(Problem(loss, bit_widths, [(cost, least - 1)]))
    assert set(
        searcher(Problem(loss, bit_widths, [(cost, least)])).bits.values()
    ) == {2}


def test_layers_without_loss_are_searched():
    """One of them has a single bit width."""
    loss, cost = Pairwise(), Pairwise()
    for name, bit_widths in (('a', (2, 8)), ('b', (8,))):
        for b in bit_widths:
            loss.add(name, b, 0.0)
            cost.add(name, b, b)
    problem = Problem(loss, dict(a=(2, 8), b=(8,)), [(cost, 10.0)])
    assert ExactSearch()(problem).bits == dict(a=2, b=8)
