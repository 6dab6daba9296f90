"""A continuous relaxation of rounding (AdaRound, Nagel et al., ICML 2020)."""

from __future__ import annotations

from typing import Any, Optional

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .affine import slopes_on_grid, values_on_grid
from .fused import fused

GAMMA, ZETA = -0.1, 1.1


def rectified_sigmoid(alpha: Tensor) -> Tensor:
    """``clip(sigmoid(alpha) * (zeta - gamma) + gamma, 0, 1)`` (eq. 23)."""
    return (torch.sigmoid(alpha) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def inverse_rectified_sigmoid(h: Tensor) -> Tensor:
    """The ``alpha`` whose rectified sigmoid is ``h``, in ``[0, 1]``."""
    return torch.logit((h - GAMMA) / (ZETA - GAMMA))


class _RelaxedRows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, alpha: Tensor, base: Tensor, step: Tensor, *grid: Any
    ) -> Tensor:
        zero_point, *ctx.range = grid
        ctx.save_for_backward(alpha, base, step, zero_point)
        return _relaxed_rows(alpha, base, step, *grid)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Optional[Tensor], ...]:
        alpha, base, step, zero_point = ctx.saved_tensors
        grad_alpha, grad_step = _relaxed_rows_backward(
            grad, alpha, base, step, zero_point, *ctx.range
        )
        grad_step = grad_step.sum_to_size(step.shape)
        return grad_alpha, None, grad_step, None, None, None


@fused
def _relaxed_rows(alpha: Tensor, base: Tensor, *grid: Any) -> Tensor:
    return values_on_grid(base + rectified_sigmoid(alpha), *grid)


@fused
def _relaxed_rows_backward(
    grad: Tensor, alpha: Tensor, base: Tensor, *grid: Any
) -> tuple[Tensor, Tensor]:
    h, slope = _slope(alpha)
    grad_q, grad_step = slopes_on_grid(grad, base + h.clamp(0, 1), *grid)
    return grad_q * slope, grad_step


def relaxed_rows(
    alpha: Tensor,
    base: Tensor,
    step: Tensor,
    zero_point: Tensor,
    qmin: int,
    qmax: int,
) -> Tensor:
    """Real values of the relaxed integers ``base + h(alpha)``.

    What :func:`mmrazor_brecq.functional.dequantize_rows` makes of them, in
    one kernel.

    Args:
        alpha (Tensor): C x K, with the rectified sigmoid ``h``.
        base (Tensor): C x K whole numbers.
        step (Tensor): C x 1 or 1 x 1.
        zero_point (Tensor): Likewise.
        qmin (int): Smallest integer.
        qmax (int): Largest integer.

    Returns:
        Tensor: C x K.
    """
    return _RelaxedRows.apply(alpha, base, step, zero_point, qmin, qmax)


def _slope(alpha: Tensor) -> tuple[Tensor, Tensor]:
    """The sigmoid before it is clamped, and the slope after that."""
    chance = torch.sigmoid(alpha)
    h = chance * (ZETA - GAMMA) + GAMMA
    slope = (ZETA - GAMMA) * chance * (1 - chance)
    return h, torch.where((h > 0) & (h < 1), slope, 0)


def rounding_penalty(alpha: Tensor, beta: Tensor) -> Tensor:
    """``sum(1 - |2 h - 1|^beta)``: nought where all is rounded (eq. 24).

    Args:
        alpha (Tensor): Rounding variables, 1-dimensional, whose
            rectified sigmoid is ``h``.
        beta (Tensor): Exponent, a scalar above 1.
    """
    return _RoundingPenalty.apply(alpha, beta)


class _RoundingPenalty(torch.autograd.Function):
    """Finds the gradient along with the value: powers are the dear part."""

    @staticmethod
    def forward(ctx: Any, alpha: Tensor, beta: Tensor) -> Tensor:
        value, slope = _penalty(alpha, beta)
        ctx.save_for_backward(slope)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (slope,) = ctx.saved_tensors
        return grad * slope, None


@fused
def _penalty(alpha: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    h, slope = _slope(alpha)
    sided = 2 * h.clamp(0, 1) - 1
    decided = sided.abs()
    power = _power(decided, beta)
    steep = beta * power / decided.clamp(min=1e-3) * sided.sign()
    return (1 - power).sum(), -2 * steep * slope


def _power(x: Tensor, exponent: Tensor) -> Tensor:
    """``x ** exponent``, 0 to 1, but never less than ``e ** -40``.

    Numbers below 1e-38 cost a hundred times as much as others.
    """
    return (exponent * x.log()).clamp(min=-40).exp()


def annealed_beta(
    progress: float, warmup: float = 0.2, start: float = 20.0, end: float = 2.0
) -> float:
    """Exponent of the penalty: flat at first, then falling in a line.

    Args:
        progress (float): Share of the iterations done, 0 to 1.
        warmup (float): Share during which the exponent stays at ``start``.
        start (float): First exponent.
        end (float): Last exponent.
    """
    left = (1 - progress) / (1 - warmup)
    return end + (start - end) * min(1.0, max(0.0, left))
