from __future__ import annotations

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from mmrazor_brecq.quantizers import AdaRound, Nearest
from mmrazor_brecq.quantizers.rounding import StraightThrough

GRID = torch.ones(10, 1), torch.zeros(10, 1), -128, 127


def gradient(rounding, weight=0.0, penalty=0.0):
    """Return the gradient of weighted values and a weighted penalty."""
    values = rounding.values(*GRID).sum()
    (weight * values + penalty * rounding.penalty(2.0)).backward()
    return rounding.alpha.grad


@pytest.fixture
def position(generator):
    """Weights over their scale, C x K."""
    return torch.randn(10, 50, generator=generator) * 4


@pytest.fixture
def rounding(position):
    started = AdaRound()
    started.start(position)
    return started


def test_adaround_begins_at_the_positions(rounding, position):
    torch.testing.assert_close(rounding.train()(), position, atol=2e-6, rtol=0)


def test_adaround_begins_at_the_nearest_integers_in_evaluation(
    rounding, position
):
    assert torch.equal(rounding.eval()(), position.round())


def test_adaround_returns_a_neighboring_integer_in_evaluation(
    rounding, position, generator
):
    with torch.no_grad():
        rounding.alpha.normal_(0, 4, generator=generator)
    rounded = rounding.eval()()

    assert torch.equal(rounded, rounded.round())
    up = rounded - position.floor()
    assert set(up.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(up > 0, rounding.alpha > 0)


def test_adaround_has_no_gradient_where_the_sigmoid_is_saturated(rounding):
    with torch.no_grad():
        rounding.alpha.copy_(torch.where(rounding.alpha > 0, 9.0, -9.0))
    assert (gradient(rounding, weight=1.0, penalty=1.0) == 0).all()
    soft = rounding.train()()
    assert torch.equal(soft, rounding.eval()())


def test_adaround_has_a_gradient_everywhere_at_the_start(rounding):
    rounding.train()().sum().backward()

    assert (rounding.alpha.grad > 0).all()


def test_the_penalty_moves_undecided_weights_to_the_nearer_integer(rounding):
    towards = -gradient(rounding, penalty=1.0).sign()

    assert torch.equal(towards, rounding.alpha.detach().sign())


def test_a_penalty_counts_for_its_own_iteration_only(rounding):
    gradient(rounding, penalty=1.0)
    rounding.alpha.grad = None
    values = rounding.values(*GRID)
    values.backward(torch.zeros_like(values))

    assert (rounding.alpha.grad == 0).all()


@pytest.mark.parametrize('reentrant', [True, False])
def test_the_penalty_counts_once_if_values_are_computed_again(
    rounding, reentrant
):
    """As with gradient checkpointing."""
    found = []
    for again in False, True:
        rounding.alpha.grad = None
        with torch.no_grad():
            rounding.values(*GRID)
        if again:
            values = checkpoint(
                lambda one: one * rounding.values(*GRID),
                torch.ones((), requires_grad=True),
                use_reentrant=reentrant,
            )
        else:
            values = rounding.values(*GRID)
        (values.square().sum() + rounding.penalty(2.0)).backward()
        found.append(rounding.alpha.grad)

    assert torch.equal(*found)
    assert rounding.fused_penalty.take() is None


def test_nearest_rounds_and_has_no_parameters(position):
    rounding = Nearest()
    rounding.start(position)

    for mode in True, False:
        assert torch.equal(rounding.train(mode)(), position.round())
    assert not list(rounding.parameters())


@pytest.mark.parametrize('kind', [AdaRound, StraightThrough])
def test_weights_of_zero_stay_zero(kind, position):
    """For any gradient."""
    position[2] = 0
    position[4, ::3] = -0.0
    zero = position == 0
    rounding = kind()
    rounding.start(position)
    optimizer = torch.optim.Adam(rounding.parameters(), lr=0.5)
    for _ in range(5):
        optimizer.zero_grad()
        values = rounding.train().values(*GRID)
        assert (values[zero] == 0).all()
        penalty = rounding.penalty(2.0)
        (-values.sum() + (0 if penalty is None else penalty)).backward()
        optimizer.step()

    assert (rounding.eval()()[zero] == 0).all()
    assert (rounding()[~zero] > position[~zero].round()).any()
