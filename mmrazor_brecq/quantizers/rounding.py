"""Roundings: from positions between grid points to integers."""
from __future__ import annotations

import torch
from torch import Tensor, nn

from ..functional import (inverse_rectified_sigmoid, rectified_sigmoid,
                          rounding_penalty)
from ..registry import MODELS


@MODELS.register_module()
class Nearest(nn.Module):
    """Every weight goes to the nearest grid point; nothing is learned."""

    def start(self, position: Tensor) -> None:
        """Begin at ``position``; nothing to remember."""

    def forward(self, position: Tensor) -> Tensor:
        """Whole numbers, with the gradient passed straight through."""
        return position + (position.round() - position).detach()

    def penalty(self, beta: float) -> Tensor:
        """Nothing is undecided."""
        return torch.zeros(())

    def undecided(self) -> float:
        """Share of weights that are not yet rounded: none."""
        return 0.


@MODELS.register_module()
class AdaRound(nn.Module):
    """Each weight learns to go up or down (Nagel et al., ICML 2020).

    In training mode it gives ``floor(position) + h(alpha)``; in evaluation
    mode ``h`` is rounded, and what comes out are integers.
    """

    alpha: nn.Parameter
    base: Tensor

    def start(self, position: Tensor) -> None:
        """Begin where nothing has been rounded yet.

        Args:
            position (Tensor): Weights in units of the step, in the
                weight's shape.
        """
        self.base = position.floor()
        self.alpha = nn.Parameter(
            inverse_rectified_sigmoid(position - self.base))

    def forward(self, position: Tensor) -> Tensor:
        """Relaxed integers in training, whole ones in evaluation mode."""
        h = rectified_sigmoid(self.alpha)
        return self.base + (h if self.training else h.round())

    def penalty(self, beta: float) -> Tensor:
        """See :func:`mmrazor_brecq.functional.rounding_penalty`."""
        return rounding_penalty(rectified_sigmoid(self.alpha), beta)

    def undecided(self) -> float:
        """Share of weights between two grid points."""
        h = rectified_sigmoid(self.alpha.detach())
        return ((h > 0.01) & (h < 0.99)).float().mean().item()
