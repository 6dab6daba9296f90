"""Losses between what a quantized part gives and what it should give."""

from __future__ import annotations

from typing import Any, Optional

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .fused import from_rows, fused, rows


class _SquaredError(torch.autograd.Function):
    """One kernel forward and one backward, in the output's memory order.

    Directions cost a matrix product each way.
    """

    @staticmethod
    def forward(
        ctx: Any,
        output: Tensor,
        target: Tensor,
        weight: Optional[Tensor],
        directions: Optional[Tensor],
    ) -> Tensor:
        error = _errors(*_aligned(output, target, weight)).mean()
        axes = along = None
        if directions is not None:
            change = rows(output) - rows(target, output)
            axes = _axes(directions, output)
            along = change.reshape(-1, axes.shape[1]) @ axes.T
            error += along.square().sum(1).mean()
        ctx.save_for_backward(output, target, weight, axes, along)
        return error

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple:
        output, target, weight, axes, along = ctx.saved_tensors
        factor = 2 / max(output.numel(), 1) * grad
        slope = _slopes(*_aligned(output, target, weight), factor)
        if axes is not None:
            along = along * (2 / max(len(along), 1) * grad)
            slope.view(-1, axes.shape[1]).addmm_(along, axes)
        return from_rows(slope, output), None, None, None


def _axes(directions: Tensor, output: Tensor) -> Tensor:
    """Each direction as a row, in the order of memory of the output."""
    axes = rows(directions.flatten(0, 1), output)
    return axes.reshape(len(directions), -1).to(output.dtype)


def _aligned(
    output: Tensor, target: Tensor, weight: Optional[Tensor]
) -> tuple[Tensor, Tensor, Optional[Tensor]]:
    """All three as rows, in the order of memory of the output."""
    if weight is not None:
        weight = weight.expand(len(weight), *output.shape[1:])
        weight = rows(weight, output)
    return rows(output), rows(target, output), weight


@fused
def _errors(
    output: Tensor, target: Tensor, weight: Optional[Tensor]
) -> Tensor:
    """Of each row, the mean."""
    error = (output - target).square()
    return (error if weight is None else error * weight).mean(1)


@fused
def _slopes(
    output: Tensor, target: Tensor, weight: Optional[Tensor], factor: Tensor
) -> Tensor:
    slope = factor * (output - target)
    return slope if weight is None else slope * weight


def weighted_squared_error(
    output: Tensor,
    target: Tensor,
    weight: Optional[Tensor] = None,
    directions: Optional[Tensor] = None,
) -> Tensor:
    """Mean squared error, weighted element by element and along directions.

    With the squared gradient of the task's loss as the weight this is the
    diagonal Fisher approximation (BRECQ, eq. 10); with scaled eigenvectors
    of the Fisher information as directions, that of low rank (FIMA-Q).

    Args:
        output (Tensor): N x ... outputs.
        target (Tensor): The same shape.
        weight (Tensor, optional): 1 x ... or N x ...
        directions (Tensor, optional): R x F x ..., if F of the N rows are
            of one image: the squares of an image's error along each of
            them are summed, and added as a mean over images.

    Returns:
        Tensor: A scalar.
    """
    return _SquaredError.apply(output, target, weight, directions)
