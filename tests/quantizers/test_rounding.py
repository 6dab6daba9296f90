from __future__ import annotations

import pytest
import torch

from mmrazor_brecq.quantizers import AdaRound, Nearest

BETA = torch.tensor(2.0)


@pytest.fixture
def position(generator):
    """C x K weights in units of their step."""
    return torch.randn(10, 50, generator=generator) * 4


@pytest.fixture
def rounding(position):
    started = AdaRound()
    started.start(position)
    return started


def test_adaround_begins_as_the_identity(rounding, position):
    torch.testing.assert_close(rounding.train()(), position, atol=2e-6, rtol=0)


def test_adaround_begins_at_the_nearest_in_evaluation(rounding, position):
    assert torch.equal(rounding.eval()(), position.round())


def test_adaround_gives_a_neighbouring_integer_in_evaluation(
    rounding, position, generator
):
    with torch.no_grad():
        rounding.alpha.normal_(0, 4, generator=generator)
    rounded = rounding.eval()()

    assert torch.equal(rounded, rounded.round())
    up = rounded - position.floor()
    assert set(up.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(up > 0, rounding.alpha > 0)


def test_adaround_has_decided_once_the_sigmoid_is_saturated(rounding):
    begun = rounding.penalty(BETA)
    with torch.no_grad():
        rounding.alpha.copy_(torch.where(rounding.alpha > 0, 9.0, -9.0))

    assert begun > 100
    assert rounding.penalty(BETA) == 0
    soft = rounding.train()()
    assert torch.equal(soft, rounding.eval()())


def test_adaround_learns_upwards_where_the_loss_asks_for_it(rounding):
    rounding.train()().sum().backward()

    assert (rounding.alpha.grad > 0).all()


def test_the_penalty_moves_what_is_learned(rounding):
    rounding.penalty(BETA).backward()
    towards = -rounding.alpha.grad.sign()

    assert torch.equal(towards, rounding.alpha.detach().sign())


def test_nearest_rounds_and_learns_nothing(position):
    rounding = Nearest()
    rounding.start(position)

    for mode in True, False:
        assert torch.equal(rounding.train(mode)(), position.round())
    assert not list(rounding.parameters())
    assert rounding.penalty(BETA) == 0
