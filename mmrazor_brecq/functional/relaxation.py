"""A continuous relaxation of rounding (AdaRound, Nagel et al., ICML 2020)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .fused import fused

GAMMA, ZETA = -0.1, 1.1


def rectified_sigmoid(alpha: Tensor) -> Tensor:
    """``clip(sigmoid(alpha) * (zeta - gamma) + gamma, 0, 1)`` (eq. 23)."""
    return (torch.sigmoid(alpha) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def inverse_rectified_sigmoid(h: Tensor) -> Tensor:
    """The ``alpha`` whose rectified sigmoid is ``h``, in ``[0, 1]``."""
    return torch.logit((h - GAMMA) / (ZETA - GAMMA))


@fused
def relaxed_integers(alpha: Tensor, base: Tensor) -> Tensor:
    """``base + h(alpha)``, with the rectified sigmoid ``h``; all of one
    dimension.
    """
    return base + rectified_sigmoid(alpha)


def rounding_penalty(alpha: Tensor, beta: Tensor) -> Tensor:
    """``sum(1 - |2 h - 1|^beta)``: nought where all is rounded (eq. 24).

    Args:
        alpha (Tensor): Rounding variables, 1-dimensional, whose
            rectified sigmoid is ``h``.
        beta (Tensor): Exponent, a scalar above 1.
    """
    return _RoundingPenalty.apply(alpha, beta)


class _RoundingPenalty(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, alpha: Tensor, beta: Tensor) -> Tensor:
        ctx.save_for_backward(alpha, beta)
        return _penalty(alpha.detach(), beta)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        alpha, beta = ctx.saved_tensors
        return _penalty_backward(grad, alpha.detach(), beta), None


@fused
def _penalty(alpha: Tensor, beta: Tensor) -> Tensor:
    decided = (2 * rectified_sigmoid(alpha) - 1).abs()
    return (1 - _power(decided, beta)).sum()


@fused
def _penalty_backward(grad: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    chance = torch.sigmoid(alpha)
    h = chance * (ZETA - GAMMA) + GAMMA
    slope = (ZETA - GAMMA) * chance * (1 - chance)
    slope = torch.where((h > 0) & (h < 1), slope, 0)
    sided = 2 * h - 1
    steep = beta * _power(sided.abs(), beta - 1) * sided.sign()
    return grad * (-2 * steep * slope)


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
