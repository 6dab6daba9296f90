from __future__ import annotations

import pytest
import torch

from mmrazor_brecq.functional import (
    FusedPenalty,
    annealed_beta,
    inverse_rectified_sigmoid,
    rectified_sigmoid,
    relaxed_rows,
    rounding_penalty,
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


def penalty_gradient(alpha, beta):
    """Return the gradient of the penalty alone."""
    alpha = torch.tensor([alpha], requires_grad=True)
    rounding_penalty(alpha, beta).backward()
    return alpha.grad[0]


@pytest.mark.parametrize('beta', [2.0, 7.5, 20.0])
def test_the_fused_penalty_has_the_gradient_of_the_plain_one(beta, generator):
    alpha = torch.randn(3, 50, generator=generator) * 4
    base = torch.randint(-6, 6, (3, 50), generator=generator).float()
    params = (
        torch.rand(3, 1, generator=generator) + 0.1,
        torch.ones(3, 1),
        -4,
        3,
    )
    grad = torch.randn(3, 50, generator=generator)
    a, b = (alpha.clone().requires_grad_() for _ in range(2))
    fused = FusedPenalty()

    for rows, penalty in [
        (relaxed_rows(a, base, *params, fused), fused(a, beta)),
        (relaxed_rows(b, base, *params), rounding_penalty(b, beta)),
    ]:
        torch.autograd.backward([rows, 0.3 * penalty], [grad, None])

    assert a.grad.any()
    torch.testing.assert_close(a.grad, b.grad)


def test_a_fused_penalty_counts_once(generator):
    alpha = torch.randn(3, 50, generator=generator).requires_grad_()
    base, params = torch.zeros(3, 50), (torch.ones(3, 1), torch.zeros(3, 1))
    fused = FusedPenalty()
    found = []
    for calls in 1, 2:
        alpha.grad = None
        rows = sum(
            relaxed_rows(alpha, base, *params, -8, 7, fused)
            for _ in range(calls)
        )
        (0 * rows.sum() + fused(alpha, 2.0)).backward()
        found.append(alpha.grad)

    assert torch.equal(*found)
    assert fused.take() is None


@pytest.mark.parametrize('beta', [2.0, 20.0])
def test_the_penalty_is_zero_if_all_weights_are_rounded(beta):
    rounded = torch.tensor([-9.0, 9.0, 7.0])
    assert rounding_penalty(rounded, beta) == 0
    assert rounding_penalty(torch.zeros(3), beta) == 3


@pytest.mark.parametrize('beta', [1.5, 2.0, 20.0])
def test_the_penalty_has_no_gradient_in_the_middle_and_at_the_ends(beta):
    assert (penalty_gradient([-9.0, 0.0, 9.0], beta) == 0).all()


def test_the_penalty_pushes_to_the_nearer_end():
    down, up = penalty_gradient([-1.0, 1.0], 2.0)

    assert down > 0 > up


def test_relaxed_rows_are_the_dequantized_relaxed_integers(generator):
    alpha = torch.randn(3, 50, generator=generator) * 4
    base = torch.randint(-8, 8, (3, 50), generator=generator).float()
    scale = torch.rand(3, 1, generator=generator) + 0.1
    zero_point = torch.tensor([[1.0], [0.0], [-2.0]])
    grad = torch.randn(3, 50, generator=generator)
    found = []
    for one_kernel in True, False:
        a, s = (x.clone().requires_grad_() for x in (alpha, scale))
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


def test_relaxed_rows_have_the_dtype_that_layers_compute_in(generator):
    alpha, grad = torch.randn(2, 3, 50, generator=generator)
    base, fused = torch.zeros(3, 50), FusedPenalty()
    params = torch.ones(3, 1), torch.zeros(3, 1), -4, 3
    a, b = (alpha.clone().requires_grad_() for _ in range(2))
    with torch.autocast('cpu', torch.bfloat16):
        low_precision = relaxed_rows(a, base, *params, fused)
    exact = relaxed_rows(b, base, *params, fused)
    assert torch.equal(low_precision, exact.bfloat16())

    for x, rows in (a, low_precision), (b, exact):
        penalty = 0.3 * fused(x, 3.0)
        upstream = grad.bfloat16().to(rows.dtype)
        torch.autograd.backward([rows, penalty], [upstream, None])
    assert a.grad.dtype == torch.float32
    torch.testing.assert_close(a.grad, b.grad)


def test_the_exponent_is_constant_in_the_warmup_and_then_linear():
    betas = [annealed_beta(i / 100, 0.2, 20.0, 2.0) for i in range(101)]

    assert betas[:21] == [20.0] * 21
    assert betas[60] == pytest.approx(11.0)
    assert betas[100] == pytest.approx(2.0)
    changes = torch.tensor(betas[20:]).diff()
    torch.testing.assert_close(changes, torch.full((80,), -18 / 80))
