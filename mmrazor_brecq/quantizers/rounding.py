"""Roundings: how the weights of a layer become integers.

A rounding starts from positions, the real weights over their scale. It
returns integers in evaluation mode. In training mode it returns what
gradients can change.
"""

from __future__ import annotations

from typing import Annotated, Any, Optional

import torch
from torch import Tensor, nn

from ..functional import (
    FusedPenalty,
    dequantize_rows,
    inverse_rectified_sigmoid,
    rectified_sigmoid,
    relaxed_rows,
)
from ..registry import MODELS
from ..validation import Config


class Rounding(nn.Module):
    """Base class of roundings.

    A subclass overrides :meth:`start` and :meth:`forward`.
    """

    def start(self, position: Tensor) -> None:
        """Start from the weights of a layer.

        Args:
            position (Tensor): Weights over their scale, C x K.
        """
        raise NotImplementedError

    def forward(self) -> Tensor:
        """Return the integers, less the zero point.

        Returns:
            Tensor: C x K in float: whole numbers in evaluation mode. Some
            may be out of the range of the grid.
        """
        raise NotImplementedError

    def values(
        self, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int
    ) -> Tensor:
        """Return the real values of the integers, clamped to the grid.

        Args:
            scale (Tensor): C x 1 or 1 x 1.
            zero_point (Tensor): C x 1 or 1 x 1.
            qmin (int): Smallest integer.
            qmax (int): Largest integer.

        Returns:
            Tensor: C x K, in the type that layers compute in.
        """
        return dequantize_rows(self(), scale, zero_point, qmin, qmax)

    def penalty(self, beta: float) -> Optional[Tensor]:
        """Return the rounding penalty, to be minimized.

        Args:
            beta (float): Exponent, above 1: see
                :func:`mmrazor_brecq.functional.rounding_penalty`.

        Returns:
            Tensor, optional: A scalar, the sum over all weights. None if the
            rounding leaves no weight between two integers.
        """
        return None


#: Type of a parameter that takes the config of a rounding.
RoundingConfig = Annotated[dict, Config(Rounding, MODELS)]


@MODELS.register_module()
class Nearest(Rounding):
    """Nearest rounding: nothing is learned."""

    integers: Tensor

    def start(self, position: Tensor) -> None:
        """Round to the nearest integers."""
        self.integers = position.round()

    def forward(self) -> Tensor:
        """Return the nearest integers, C x K."""
        return self.integers


@MODELS.register_module()
class AdaRound(Rounding):
    """Rounding that learns to go up or down (Nagel et al., ICML 2020).

    Each weight is ``floor(position) + h(alpha)`` during learning, with the
    rectified sigmoid ``h`` between 0 and 1. A weight of exactly zero, such
    as a pruned one, stays zero.

    Example:
        >>> quantization = dict(
        ...     weight=dict(bits=4, rounding=dict(type='AdaRound'))
        ... )
    """

    alpha: nn.Parameter
    base: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.fused_penalty = FusedPenalty()

    def start(self, position: Tensor) -> None:
        """Start where ``floor(position) + h(alpha)`` is the position."""
        self.base = position.floor()
        alpha = inverse_rectified_sigmoid(position - self.base)
        # At -4 the rectified sigmoid is 0 and has no slope.
        self.alpha = nn.Parameter(alpha.masked_fill(position == 0, -4))

    def forward(self) -> Tensor:
        """Return ``floor(position) + h(alpha)``, C x K."""
        up = rectified_sigmoid(self.alpha)
        return self.base + (up if self.training else up.round())

    def values(
        self, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int
    ) -> Tensor:
        """Return the real values, in training mode with a fused kernel."""
        if not self.training:
            return super().values(scale, zero_point, qmin, qmax)
        return relaxed_rows(
            self.alpha,
            self.base,
            scale,
            zero_point,
            qmin,
            qmax,
            self.fused_penalty,
        )

    def penalty(self, beta: float) -> Optional[Tensor]:
        """Return a scalar that has the gradient of the rounding penalty.

        See :class:`mmrazor_brecq.functional.FusedPenalty`: its value is 0.
        """
        return self.fused_penalty(self.alpha, beta)


class _Round(torch.autograd.Function):
    """Rounding whose gradient is 1, or 0 for fixed elements."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, fixed: Optional[Tensor]) -> Tensor:
        ctx.fixed = fixed
        return x.round()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        if ctx.fixed is not None:
            grad = grad.masked_fill(ctx.fixed, 0)
        return grad, None


@MODELS.register_module()
class StraightThrough(Rounding):
    """Nearest rounding of positions that are learned.

    The gradient passes the rounding unchanged (Bengio et al., 2013), so a
    weight may move by several integers. A weight of exactly zero, such as a
    pruned one, stays zero.
    """

    position: nn.Parameter
    fixed: Optional[Tensor] = None

    def start(self, position: Tensor) -> None:
        """Start from the positions of the weights."""
        self.position = nn.Parameter(position.clone())
        zero = position == 0
        self.fixed = zero if zero.any() else None

    def forward(self) -> Tensor:
        """Return the nearest integers, C x K."""
        return _Round.apply(self.position, self.fixed)
