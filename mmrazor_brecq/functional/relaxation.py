"""A continuous relaxation of rounding (AdaRound, Nagel et al., ICML 2020)."""

from __future__ import annotations

from typing import Any, Optional

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..runtime.kernels import Kernel
from .affine import (
    compute_dtype,
    dequantize_clamped,
    dequantize_clamped_backward,
)


def rectified_sigmoid(alpha: Tensor) -> Tensor:
    """``clip(sigmoid(alpha) * (zeta - gamma) + gamma, 0, 1)`` (eq. 23).

    Here ``zeta`` is 1.1 and ``gamma`` -0.1.
    """
    return _stretched(torch.sigmoid(alpha)).clamp(0, 1)


def inverse_rectified_sigmoid(h: Tensor) -> Tensor:
    """The ``alpha`` whose rectified sigmoid is ``h``, in ``[0, 1]``."""
    return torch.logit((h + 0.1) / 1.2)


def _stretched(chance: Tensor) -> Tensor:
    # Numbers, for a kernel takes the value of a name as one more tensor.
    return 1.2 * chance - 0.1


class _RelaxedRows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        penalty: Optional[FusedPenalty],
        alpha: Tensor,
        base: Tensor,
        step: Tensor,
        zero_point: Tensor,
        *range_: int,
    ) -> Tensor:
        grid = step, zero_point, *range_
        values, chance = _relaxed_rows(
            alpha, base, *grid, compute_dtype(alpha)
        )
        ctx.save_for_backward(chance, base, step, zero_point)
        ctx.range, ctx.penalty = range_, penalty
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Optional[Tensor], ...]:
        chance, base, step, zero_point = ctx.saved_tensors
        operands = grad, chance, base, step, zero_point, *ctx.range
        penalty = ctx.penalty.take() if ctx.penalty else None
        if penalty is None:
            penalty = chance.new_zeros(2)
        grad_alpha, grad_step = _relaxed_rows_backward(penalty, *operands)
        grad_step = grad_step.sum_to_size(step.shape)
        return None, grad_alpha, None, grad_step, None, None, None


@Kernel
def _relaxed_rows(
    alpha: Tensor, base: Tensor, *grid: Any
) -> tuple[Tensor, Tensor]:
    chance = torch.sigmoid(alpha)
    h = _stretched(chance).clamp(0, 1)
    return dequantize_clamped(base + h, *grid), chance


@Kernel
def _relaxed_rows_backward(
    penalty: Tensor, grad: Tensor, chance: Tensor, base: Tensor, *grid: Any
) -> tuple[Tensor, Tensor]:
    h, slope = _slope(chance)
    grad_h, grad_step = dequantize_clamped_backward(grad, base + h, *grid)
    grad_penalty = penalty[0] * _penalty_slope(h, penalty[1])
    return (grad_h + grad_penalty) * slope, grad_step


def _slope(chance: Tensor) -> tuple[Tensor, Tensor]:
    """The rectified sigmoid and its slope."""
    h = _stretched(chance)
    slope = 1.2 * chance * (1 - chance)
    return h.clamp(0, 1), torch.where(h * (1 - h) > 0, slope, 0)


def _penalty_slope(h: Tensor, beta: Tensor) -> Tensor:
    """Of ``1 - |2 h - 1|^beta`` in ``h``.

    No power is less than ``e ** -40``: numbers below 1e-38 cost a hundred
    times as much as others.
    """
    sided = 2 * h - 1
    log = sided.abs().clamp(min=1e-12).log()
    power = ((beta - 2) * log).clamp(min=-40).exp()
    return -2 * beta * power * sided


def relaxed_rows(
    alpha: Tensor,
    base: Tensor,
    step: Tensor,
    zero_point: Tensor,
    qmin: int,
    qmax: int,
    penalty: Optional[FusedPenalty] = None,
) -> Tensor:
    """Return the real values of the relaxed integers ``base + h(alpha)``.

    What :func:`mmrazor_brecq.functional.dequantize_rows` makes of them, in
    one kernel.

    Args:
        alpha (Tensor): C x K, with the rectified sigmoid ``h``.
        base (Tensor): C x K whole numbers.
        step (Tensor): C x 1 or 1 x 1.
        zero_point (Tensor): Likewise.
        qmin (int): Smallest integer.
        qmax (int): Largest integer.
        penalty (FusedPenalty, optional): Has the gradient of a penalty that
            is to be added to that of the values.

    Returns:
        Tensor: C x K, in the type that layers compute in.
    """
    return _RelaxedRows.apply(
        penalty, alpha, base, step, zero_point, qmin, qmax
    )


def rounding_penalty(alpha: Tensor, beta: float) -> Tensor:
    """Return ``sum(1 - |2 h(alpha) - 1|^beta)`` (AdaRound, eq. 24).

    It is 0 where every weight is rounded up or down, and pushes those in
    between to the nearer end. This is the plain form;
    :class:`FusedPenalty` has the same gradient.

    Args:
        alpha (Tensor): Of any shape, with the rectified sigmoid ``h``.
        beta (float): Exponent, more than 1.

    Returns:
        Tensor: A scalar.
    """
    return (1 - (2 * rectified_sigmoid(alpha) - 1).abs().pow(beta)).sum()


class FusedPenalty:
    """The rounding penalty, its gradient computed with that of the weights.

    The gradient of :func:`rounding_penalty` needs the same numbers as that
    of :func:`relaxed_rows`, so one kernel computes both: the penalty only
    leaves its weight and ``beta`` here when its own gradient is asked for.
    Gradients come in the reverse order of computation, so call it after
    :func:`relaxed_rows`.
    """

    def __init__(self) -> None:
        self.waiting: Optional[Tensor] = None

    def __call__(self, alpha: Tensor, beta: float) -> Tensor:
        """Return a scalar with the gradient of :func:`rounding_penalty`.

        Its value is not computed, and is 0.

        Args:
            alpha (Tensor): That of :func:`relaxed_rows`.
            beta (float): Exponent, more than 1.
        """
        return _Postponed.apply(alpha, beta, self)

    def take(self) -> Optional[Tensor]:
        """Return weight and ``beta``, once: not for every part of a batch."""
        waiting, self.waiting = self.waiting, None
        return waiting


class _Postponed(torch.autograd.Function):
    """Leaves its gradient to :func:`relaxed_rows`."""

    @staticmethod
    def forward(
        ctx: Any, alpha: Tensor, beta: float, penalty: FusedPenalty
    ) -> Tensor:
        ctx.beta, ctx.penalty = beta, penalty
        return alpha.new_zeros(())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None, None]:
        ctx.penalty.waiting = torch.stack([grad, grad.new_tensor(ctx.beta)])
        return None, None, None


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
