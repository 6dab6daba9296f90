"""Losses between what a quantized part gives and what it should give."""

from __future__ import annotations

from typing import Any, Optional

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..runtime.kernels import Kernel
from .layout import from_rows, to_rows


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
        values = to_rows(output)
        if weight is None:  # A kernel of its own would be compiled for it.
            weight = target.new_ones(1, values.shape[1])
        else:
            weight = weight.expand(len(weight), *output.shape[1:])
            weight = to_rows(weight, output)
        change, errors = _changes(values, to_rows(target, output), weight)
        error = errors.mean()
        axes = along = None
        if directions is not None:
            axes = to_rows(directions.flatten(0, 1), output).to(change.dtype)
            axes = axes.reshape(len(directions), -1)
            along = change.view(-1, axes.shape[1]) @ axes.T
            error += along.to(error.dtype).square().sum(1).mean()
        ctx.save_for_backward(change, weight, axes, along)
        # Only its order of memory, for its values are in the change.
        ctx.form = torch.empty_like(output, device='meta')
        return error

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple:
        change, weight, axes, along = ctx.saved_tensors
        low = None
        if axes is not None:
            along = along * (2 / max(len(along), 1) * grad)
            low = (along.to(axes.dtype) @ axes).view_as(change)
        factor = 2 / max(change.numel(), 1) * grad
        slope = _slopes(change, weight, low, factor)
        return from_rows(slope, ctx.form), None, None, None


@Kernel
def _changes(
    output: Tensor, target: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Elements of the error, and of each row the mean of their squares."""
    change = output.to(target.dtype) - target
    square = change.square() * weight
    return change.to(output.dtype), square.mean(1)


@Kernel
def _slopes(
    change: Tensor, weight: Tensor, low: Optional[Tensor], factor: Tensor
) -> Tensor:
    slope = factor * change.to(factor.dtype) * weight
    if low is not None:
        slope = slope + low.to(factor.dtype)
    return slope.to(change.dtype)


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
        output (Tensor): N x ... outputs, of shorter numbers than the
            target's if need be: so is their gradient then.
        target (Tensor): The same shape.
        weight (Tensor, optional): 1 x ... or N x ...
        directions (Tensor, optional): R x F x ..., if F of the N rows are
            of one image: the squares of an image's error along each of
            them are summed, and added as a mean over images.

    Returns:
        Tensor: A scalar.
    """
    return _SquaredError.apply(output, target, weight, directions)
