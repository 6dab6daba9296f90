"""Losses between what a quantized part gives and what it should give."""

from __future__ import annotations

from typing import Optional

from torch import Tensor


def weighted_squared_error(
    output: Tensor, target: Tensor, weight: Optional[Tensor] = None
) -> Tensor:
    """Mean squared error, weighted element by element.

    With the squared gradient of the task's loss as the weight this is the
    diagonal Fisher approximation (BRECQ, eq. 10).

    Args:
        output (Tensor): N x ... outputs.
        target (Tensor): The same shape.
        weight (Tensor, optional): Broadcastable to ``output``, mean 1.

    Returns:
        Tensor: A scalar.
    """
    error = (output - target).square()
    return (error if weight is None else error * weight).mean()
