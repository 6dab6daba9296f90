from __future__ import annotations

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from mmrazor_brecq.quantizers import AdaRound, Nearest
from mmrazor_brecq.quantizers.rounding import StraightThrough

#: Of a penalty: weight and exponent.
PRESSURE = torch.tensor([1.0, 2.0])


def gradient(rounding, weight=0.0):
    """What comes back of some values times ``weight``."""
    one = torch.ones(10, 1)
    values = rounding.values(one, torch.zeros(10, 1), -128, 127)
    values.backward(torch.full_like(values, weight))
    return rounding.alpha.grad


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
    with torch.no_grad():
        rounding.alpha.copy_(torch.where(rounding.alpha > 0, 9.0, -9.0))
    rounding.press(PRESSURE)

    assert (gradient(rounding, weight=1.0) == 0).all()
    soft = rounding.train()()
    assert torch.equal(soft, rounding.eval()())


def test_adaround_learns_upwards_where_the_loss_asks_for_it(rounding):
    rounding.train()().sum().backward()

    assert (rounding.alpha.grad > 0).all()


def test_pressure_moves_the_undecided_once(rounding):
    rounding.press(PRESSURE)
    towards = -gradient(rounding).sign()

    assert torch.equal(towards, rounding.alpha.detach().sign())
    rounding.alpha.grad = None
    assert (gradient(rounding) == 0).all()


def test_a_layer_that_is_called_twice_is_pressed_once(rounding):
    grid = torch.ones(10, 1), torch.zeros(10, 1), -128, 127
    rounding.press(PRESSURE)
    once = gradient(rounding).clone()
    rounding.alpha.grad = None
    rounding.press(PRESSURE)
    twice = rounding.values(*grid) + rounding.values(*grid)
    twice.backward(torch.zeros_like(twice))

    assert torch.equal(rounding.alpha.grad, once) and once.any()


@pytest.mark.parametrize('reentrant', [True, False])
def test_pressure_waits_for_a_gradient(rounding, reentrant):
    """What is computed again for its gradient has not used it up."""
    grid = torch.ones(10, 1), torch.zeros(10, 1), -128, 127
    found = []
    for again in False, True:
        rounding.press(PRESSURE)
        rounding.alpha.grad = None
        with torch.no_grad():
            rounding.values(*grid)
        if again:
            values = checkpoint(
                lambda one: one * rounding.values(*grid),
                torch.ones((), requires_grad=True),
                use_reentrant=reentrant,
            )
        else:
            values = rounding.values(*grid)
        values.square().sum().backward()
        found.append(rounding.alpha.grad)

    assert torch.equal(*found)
    assert rounding.pressure is None


def test_nearest_rounds_and_learns_nothing(position):
    rounding = Nearest()
    rounding.start(position)

    for mode in True, False:
        assert torch.equal(rounding.train(mode)(), position.round())
    assert not list(rounding.parameters())


@pytest.mark.parametrize('kind', [AdaRound, StraightThrough])
def test_what_is_zero_stays_zero(kind, position):
    """Whatever the gradients ask for."""
    position[2] = 0
    position[4, ::3] = -0.0
    zero = position == 0
    rounding = kind()
    rounding.start(position)
    optimizer = torch.optim.Adam(rounding.parameters(), lr=0.5)
    for _ in range(5):
        optimizer.zero_grad()
        rounding.train().press(PRESSURE)
        one = torch.ones(10, 1)
        values = rounding.values(one, torch.zeros(10, 1), -128, 127)
        assert (values[zero] == 0).all()
        (-values.sum()).backward()
        optimizer.step()

    assert (rounding.eval()()[zero] == 0).all()
    assert (rounding()[~zero] > position[~zero].round()).any()
