"""Roundings: from positions between grid points to integers.

A rounding is begun at the positions of a layer's weights, in units of their
step. It then gives integers: relaxed ones in training mode, whole ones in
evaluation mode.
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
    """What roundings have in common."""

    def start(self, position: Tensor) -> None:
        """Begin.

        Args:
            position (Tensor): C x K weights in units of their step.
        """
        raise NotImplementedError

    def forward(self) -> Tensor:
        """The integers, C x K."""
        raise NotImplementedError

    def values(
        self, step: Tensor, zero_point: Tensor, qmin: int, qmax: int
    ) -> Tensor:
        """Real values of the integers, C x K, kept within the grid.

        See :func:`mmrazor_brecq.functional.dequantize_rows`.
        """
        return dequantize_rows(self(), step, zero_point, qmin, qmax)

    def penalty(self, beta: float) -> Optional[Tensor]:
        """Return how far the weights are from being rounded, to be minimized.

        None, unless a rounding leaves anything between two integers.

        Args:
            beta (float): Exponent, more than 1: see
                :func:`mmrazor_brecq.functional.rounding_penalty`.

        Returns:
            Tensor, optional: A scalar, the sum over all weights.
        """
        return None


#: How a parameter says that it takes a rounding.
RoundingConfig = Annotated[dict, Config(Rounding, MODELS)]


@MODELS.register_module()
class Nearest(Rounding):
    """Every weight goes to the nearest grid point; nothing is learned."""

    integers: Tensor

    def start(self, position: Tensor) -> None:
        """Round."""
        self.integers = position.round()

    def forward(self) -> Tensor:
        """Whole numbers, C x K."""
        return self.integers


@MODELS.register_module()
class AdaRound(Rounding):
    """Each weight learns to go up or down (Nagel et al., ICML 2020).

    A weight of exactly zero, such as a pruned one, stays zero.
    """

    alpha: nn.Parameter
    base: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.fused_penalty = FusedPenalty()

    def start(self, position: Tensor) -> None:
        """Begin where nothing has been rounded yet."""
        self.base = position.floor()
        alpha = inverse_rectified_sigmoid(position - self.base)
        # Far out, where the sigmoid is cut off and has no slope.
        self.alpha = nn.Parameter(alpha.masked_fill(position == 0, -4))

    def forward(self) -> Tensor:
        """``floor(position) + h(alpha)``, C x K."""
        up = rectified_sigmoid(self.alpha)
        return self.base + (up if self.training else up.round())

    def values(
        self, step: Tensor, zero_point: Tensor, qmin: int, qmax: int
    ) -> Tensor:
        """In training, by :func:`mmrazor_brecq.functional.relaxed_rows`."""
        if not self.training:
            return super().values(step, zero_point, qmin, qmax)
        return relaxed_rows(
            *(self.alpha, self.base, step, zero_point, qmin, qmax),
            penalty=self.fused_penalty,
        )

    def penalty(self, beta: float) -> Optional[Tensor]:
        """Return :class:`mmrazor_brecq.functional.FusedPenalty`'s scalar."""
        return self.fused_penalty(self.alpha, beta)


class _Round(torch.autograd.Function):
    """Rounding whose gradient is 1, or 0 where nothing may move."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, still: Optional[Tensor]) -> Tensor:
        ctx.still = still
        return x.round()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        if ctx.still is not None:
            grad = grad.masked_fill(ctx.still, 0)
        return grad, None


@MODELS.register_module()
class StraightThrough(Rounding):
    """Each weight moves freely, and is rounded wherever it stands.

    The gradient passes the rounding as if it were not there (Bengio et
    al., 2013), so that a weight may cross several steps. One of exactly
    zero, such as a pruned one, stays zero.
    """

    position: nn.Parameter
    still: Optional[Tensor] = None

    def start(self, position: Tensor) -> None:
        """Begin where the weights are."""
        self.position = nn.Parameter(position.clone())
        zero = position == 0
        self.still = zero if zero.any() else None

    def forward(self) -> Tensor:
        """The nearest whole numbers, C x K."""
        return _Round.apply(self.position, self.still)
