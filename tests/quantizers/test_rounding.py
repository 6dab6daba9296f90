from __future__ import annotations

import torch

from mmrazor_brecq.quantizers import AdaRound, Nearest


def started(position):
    rounding = AdaRound()
    rounding.start(position)
    return rounding


def test_adaround_begins_as_the_identity(generator):
    position = torch.randn(8, 3, 3, 3, generator=generator) * 4
    rounding = started(position).train()

    torch.testing.assert_close(
        rounding(position), position, atol=2e-6, rtol=0
    )


def test_adaround_gives_a_neighbouring_integer_in_evaluation(generator):
    position = torch.randn(500, generator=generator) * 4
    rounding = started(position)
    with torch.no_grad():
        rounding.alpha.normal_(0, 4, generator=generator)
    rounded = rounding.eval()(position)

    assert torch.equal(rounded, rounded.round())
    up = rounded - position.floor()
    assert set(up.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(up > 0, rounding.alpha > 0)


def test_adaround_begins_at_the_nearest_in_evaluation(generator):
    position = torch.randn(500, generator=generator) * 4
    rounding = started(position).eval()

    assert torch.equal(rounding(position), position.round())


def test_adaround_has_decided_once_the_sigmoid_is_saturated(generator):
    position = torch.randn(500, generator=generator)
    rounding = started(position)
    begun = rounding.undecided()
    penalty = rounding.penalty(2.0)
    with torch.no_grad():
        rounding.alpha.copy_(torch.where(rounding.alpha > 0, 9.0, -9.0))

    assert begun > 0.9 and penalty > 100
    assert rounding.undecided() == 0
    assert rounding.penalty(2.0) == 0
    soft = rounding.train()(position)
    assert torch.equal(soft, rounding.eval()(position))


def test_adaround_learns_upwards_where_the_loss_asks_for_it(generator):
    position = torch.randn(100, generator=generator)
    rounding = started(position).train()
    rounding(position).sum().backward()

    assert (rounding.alpha.grad > 0).all()


def test_nearest_rounds_exactly_and_passes_the_gradient(generator):
    position = torch.randn(2000, generator=generator) * 30
    position.requires_grad_()
    rounding = Nearest()
    rounding.start(position)
    out = rounding(position)
    out.sum().backward()

    assert torch.equal(out, position.round())
    assert (position.grad == 1).all()
    assert not list(rounding.parameters())
    assert rounding.penalty(2.0) == 0 and rounding.undecided() == 0
