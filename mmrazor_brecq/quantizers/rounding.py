"""Roundings: from positions between grid points to integers.

A rounding is begun at the positions of a layer's weights, in units of their
step. It then gives integers: relaxed ones in training mode, whole ones in
evaluation mode.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..functional import (
    inverse_rectified_sigmoid,
    rectified_sigmoid,
    relaxed_integers,
    rounding_penalty,
)
from ..registry import MODELS


@MODELS.register_module()
class Nearest(nn.Module):
    """Every weight goes to the nearest grid point; nothing is learned."""

    integers: Tensor

    def start(self, position: Tensor) -> None:
        """Round.

        Args:
            position (Tensor): C x K weights in units of their step.
        """
        self.integers = position.round()

    def forward(self) -> Tensor:
        """Whole numbers, C x K."""
        return self.integers

    def penalty(self, beta: Tensor) -> Tensor:
        """What is undecided: nothing."""
        return beta.new_zeros(())


@MODELS.register_module()
class AdaRound(nn.Module):
    """Each weight learns to go up or down (Nagel et al., ICML 2020)."""

    alpha: nn.Parameter
    base: Tensor

    def start(self, position: Tensor) -> None:
        """Begin where nothing has been rounded yet.

        Args:
            position (Tensor): C x K weights in units of their step.
        """
        self.base = position.floor()
        self.alpha = nn.Parameter(
            inverse_rectified_sigmoid(position - self.base)
        )

    def forward(self) -> Tensor:
        """``floor(position) + h(alpha)``, C x K."""
        if self.training:
            relaxed = relaxed_integers(self.alpha.view(-1), self.base.view(-1))
            return relaxed.view_as(self.base)
        return self.base + rectified_sigmoid(self.alpha).round()

    def penalty(self, beta: Tensor) -> Tensor:
        """See :func:`mmrazor_brecq.functional.rounding_penalty`."""
        return rounding_penalty(self.alpha.view(-1), beta)


class _Round(torch.autograd.Function):
    """Rounding whose gradient is 1."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


@MODELS.register_module()
class StraightThrough(nn.Module):
    """Each weight moves freely, and is rounded wherever it stands.

    The gradient passes the rounding as if it were not there (Bengio et
    al., 2013), so that a weight may cross several steps.
    """

    position: nn.Parameter

    def start(self, position: Tensor) -> None:
        """Begin where the weights are.

        Args:
            position (Tensor): C x K weights in units of their step.
        """
        self.position = nn.Parameter(position.clone())

    def forward(self) -> Tensor:
        """The nearest whole numbers, C x K."""
        return _Round.apply(self.position)

    def penalty(self, beta: Tensor) -> Tensor:
        """What is undecided: nothing."""
        return beta.new_zeros(())
