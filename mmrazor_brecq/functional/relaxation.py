"""A continuous relaxation of rounding (AdaRound, Nagel et al., ICML 2020)."""

from __future__ import annotations

import torch
from torch import Tensor

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


@fused
def rounding_penalty(alpha: Tensor, beta: Tensor) -> Tensor:
    """``sum(1 - |2 h - 1|^beta)``: nought where all is rounded (eq. 24).

    Args:
        alpha (Tensor): Rounding variables, 1-dimensional, whose
            rectified sigmoid is ``h``.
        beta (Tensor): Exponent, a scalar above 1.
    """
    return (1 - (2 * rectified_sigmoid(alpha) - 1).abs().pow(beta)).sum()


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
