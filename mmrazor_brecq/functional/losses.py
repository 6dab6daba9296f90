"""Losses between the output of a quantized part and its target."""

from __future__ import annotations

from typing import Any, Optional

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..runtime.kernels import Kernel
from .layout import from_rows, to_rows


class _SquaredError(torch.autograd.Function):
    """The squared error in one kernel forward and one backward.

    Both work in the output's memory order. Directions cost one more matrix
    product each way.
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
        # Weights of 1 spare the compilation of a kernel without weights.
        if weight is None:
            weight = target.new_ones(1, values.shape[1])
        else:
            weight = weight.expand(len(weight), *output.shape[1:])
            weight = to_rows(weight, output)
        change, errors = _row_errors(values, to_rows(target, output), weight)
        error = errors.mean()
        axes = projection = None
        if directions is not None:
            axes = to_rows(directions.flatten(0, 1), output).to(change.dtype)
            axes = axes.reshape(len(directions), -1)
            projection = change.view(-1, axes.shape[1]) @ axes.T
            error += projection.to(error.dtype).square().sum(1).mean()
        ctx.save_for_backward(change, weight, axes, projection)
        # The backward pass needs the output's memory order, not its values.
        ctx.layout = torch.empty_like(output, device='meta')
        return error

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Optional[Tensor], ...]:
        change, weight, axes, projection = ctx.saved_tensors
        axes_grad = None
        if axes is not None:
            projection = projection * (2 / max(len(projection), 1) * grad)
            axes_grad = (projection.to(axes.dtype) @ axes).view_as(change)
        factor = 2 / max(change.numel(), 1) * grad
        output_grad = _row_errors_backward(change, weight, axes_grad, factor)
        return from_rows(output_grad, ctx.layout), None, None, None


@Kernel
def _row_errors(
    output: Tensor, target: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the error of each element, and each row's mean square."""
    change = output.to(target.dtype) - target
    square = change.square() * weight
    return change.to(output.dtype), square.mean(1)


@Kernel
def _row_errors_backward(
    change: Tensor,
    weight: Tensor,
    axes_grad: Optional[Tensor],
    factor: Tensor,
) -> Tensor:
    """Return the gradient for the output, that of directions added."""
    grad = factor * change.to(factor.dtype) * weight
    if axes_grad is not None:
        grad = grad + axes_grad.to(factor.dtype)
    return grad.to(change.dtype)


def weighted_squared_error(
    output: Tensor,
    target: Tensor,
    weight: Optional[Tensor] = None,
    directions: Optional[Tensor] = None,
) -> Tensor:
    """Return the mean squared error, weighted by element and by direction.

    With the squared gradient of the task's loss as the weight this is the
    diagonal Fisher approximation (BRECQ, eq. 10); with scaled eigenvectors
    of the Fisher information as directions, that of low rank (FIMA-Q).

    Args:
        output (Tensor): N x ... outputs. They may have lower precision than
            the target: their gradient then has it, too.
        target (Tensor): The same shape.
        weight (Tensor, optional): 1 x ... or N x ... Default: 1.
        directions (Tensor, optional): R x F x ..., where F of the N rows
            belong to one image: the error of an image is projected onto
            each of the R directions, the squares are summed, and their mean
            over images is added.

    Returns:
        Tensor: A scalar.
    """
    return _SquaredError.apply(output, target, weight, directions)
