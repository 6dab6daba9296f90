from __future__ import annotations

import pytest
import torch

from mmrazor_brecq.functional import (
    annealed_beta,
    inverse_rectified_sigmoid,
    rectified_sigmoid,
    relaxed_rows,
)


def test_the_inverse_undoes_the_rectified_sigmoid():
    h = torch.linspace(0, 1, 101)
    alpha = inverse_rectified_sigmoid(h)

    assert alpha.isfinite().all()
    torch.testing.assert_close(rectified_sigmoid(alpha), h)


def test_the_rectified_sigmoid_reaches_both_ends_and_only_rises():
    h = rectified_sigmoid(torch.linspace(-6, 6, 200))

    assert h.min() == 0 and h.max() == 1
    assert (h.diff() >= 0).all()


def pushed(alpha, beta):
    """The gradient of the penalty alone."""
    alpha = torch.tensor([alpha], requires_grad=True)
    rows = relaxed_rows(
        *(alpha, torch.zeros(1, alpha.numel()), torch.ones(1, 1)),
        *(torch.zeros(1, 1), -8, 7),
        lambda: torch.tensor([1.0, beta]),
    )
    rows.backward(torch.zeros_like(rows))
    return alpha.grad[0]


@pytest.mark.parametrize('beta', [2.0, 7.5, 20.0])
def test_pressure_is_the_gradient_of_the_penalty(beta, generator):
    alpha = torch.randn(3, 50, generator=generator) * 4
    base = torch.randint(-6, 6, (3, 50), generator=generator).float()
    grid = torch.rand(3, 1, generator=generator) + 0.1, torch.ones(3, 1), -4, 3
    grad = torch.randn(3, 50, generator=generator)
    a, b = (alpha.clone().requires_grad_() for _ in range(2))
    pressure = torch.tensor([0.3, beta])

    relaxed_rows(a, base, *grid, lambda: pressure).backward(grad)
    penalty = 1 - (2 * rectified_sigmoid(b) - 1).abs().pow(beta)
    rows = relaxed_rows(b, base, *grid)
    torch.autograd.backward([rows, 0.3 * penalty.sum()], [grad, None])

    torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize('beta', [1.0, 2.0, 20.0])
def test_pressure_is_nought_in_the_middle_and_where_all_is_rounded(beta):
    assert (pushed([-9.0, 0.0, 9.0], beta) == 0).all()


def test_pressure_pushes_to_the_nearer_end():
    down, up = pushed([-1.0, 1.0], 2.0)

    assert down > 0 > up


def test_relaxed_rows_are_the_dequantized_relaxed_integers(generator):
    alpha = torch.randn(3, 50, generator=generator) * 4
    base = torch.randint(-8, 8, (3, 50), generator=generator).float()
    step = torch.rand(3, 1, generator=generator) + 0.1
    zero_point = torch.tensor([[1.0], [0.0], [-2.0]])
    grad = torch.randn(3, 50, generator=generator)
    found = []
    for one_kernel in True, False:
        a, s = (x.clone().requires_grad_() for x in (alpha, step))
        if one_kernel:
            rows = relaxed_rows(a, base, s, zero_point, -4, 3)
        else:
            integers = base + rectified_sigmoid(a)
            low, high = -4 - zero_point, 3 - zero_point
            rows = torch.minimum(torch.maximum(integers, low), high) * s
        rows.backward(grad)
        found.append((rows, a.grad, s.grad))

    for one, other in zip(*found):
        torch.testing.assert_close(one, other)


def test_relaxed_rows_are_of_the_type_that_layers_compute_in(generator):
    alpha, grad = torch.randn(2, 3, 50, generator=generator)
    base, pressure = torch.zeros(3, 50), torch.tensor([0.3, 3.0])
    grid = torch.ones(3, 1), torch.zeros(3, 1), -4, 3
    a, b = (alpha.clone().requires_grad_() for _ in range(2))
    with torch.autocast('cpu', torch.bfloat16):
        short = relaxed_rows(a, base, *grid, lambda: pressure)
    usual = relaxed_rows(b, base, *grid, lambda: pressure)
    assert torch.equal(short, usual.bfloat16())

    short.backward(grad.bfloat16())
    usual.backward(grad.bfloat16().float())
    assert a.grad.dtype == torch.float32
    torch.testing.assert_close(a.grad, b.grad)


def test_the_exponent_is_flat_through_the_warmup_and_then_falls_in_a_line():
    betas = [annealed_beta(i / 100, 0.2, 20.0, 2.0) for i in range(101)]

    assert betas[:21] == [20.0] * 21
    assert betas[60] == pytest.approx(11.0)
    assert betas[100] == pytest.approx(2.0)
    steps = torch.tensor(betas[20:]).diff()
    torch.testing.assert_close(steps, torch.full((80,), -18 / 80))
