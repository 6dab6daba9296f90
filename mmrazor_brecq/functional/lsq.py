"""Quantization with learned scales (LSQ, Esser et al., ICLR 2020).

There is one scale, or one for each head: H x 1 x 1 for the third dimension
from the end.
"""

from __future__ import annotations

from typing import Any, Optional

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..runtime.kernels import Kernel, is_traced
from .affine import compute_dtype, dequantize, quantize
from .layout import from_flat, to_flat


class _FakeQuantize(torch.autograd.Function):
    """Quantize and dequantize with learned scales, and QDrop.

    Only the input is saved: the backward pass computes again which elements
    are inside the range.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        log_scale: Tensor,
        initial_scale: Tensor,
        zero_point: Tensor,
        qmin: int,
        qmax: int,
        keep: Optional[Tensor],
    ) -> Tensor:
        scale = initial_scale * log_scale.exp()
        # Operands of one dtype need one kernel only.
        zero_point = zero_point.to(scale.dtype)
        ctx.save_for_backward(x, scale, zero_point, keep)
        ctx.range = qmin, qmax
        return _fake_quantize_in_layout(x, scale, zero_point, qmin, qmax, keep)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Optional[Tensor], ...]:
        x, scale, zero_point, keep = ctx.saved_tensors
        if scale.dim() > 1:  # Of heads.
            grads = _by_head_backward(
                grad, x, scale, zero_point, ctx.range, keep
            )
            return *grads, None, None, None, None, None
        operands = (
            to_flat(grad, x),
            to_flat(x),
            scale,
            zero_point,
            *ctx.range,
            keep,
        )
        if ctx.needs_input_grad[0]:
            grad_x, grad_log_scale = _fake_quantize_backward(*operands)
            grad_x = from_flat(grad_x, x)
        else:
            grad_x, grad_log_scale = None, _log_scale_backward(*operands)
        return grad_x, grad_log_scale, None, None, None, None, None


def _by_head_backward(
    grad: Tensor,
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    bounds: tuple[int, int],
    keep: Optional[Tensor],
) -> tuple[Tensor, Tensor]:
    """Return the gradients for ``x`` and for the scales' logarithms."""
    heads = _by_head(x, scale)
    grad_x, grad_log_scale = _fake_quantize_by_head_backward(
        grad.reshape(heads.shape),
        heads,
        scale.view(-1, 1),
        zero_point,
        *bounds,
        None if keep is None else keep.view(heads.shape),
    )
    return grad_x.view(x.shape), grad_log_scale.view(scale.shape)


def _by_head(x: Tensor, scale: Tensor) -> Tensor:
    """Return activations as N x H x K for H scales.

    Raises:
        ValueError: If there are not as many heads as scales.
    """
    if x.dim() < 3 or x.shape[-3] != scale.numel():
        raise ValueError(
            f'The activation has the shape {tuple(x.shape)}, expected '
            f'{scale.numel()} heads in its third dimension from the end, as '
            'in the calibration: leave this product in float with '
            '`bit_overrides`'
        )
    return x.reshape(-1, x.shape[-3], x.shape[-2] * x.shape[-1])


@Kernel
def _fake_quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    qmin: int,
    qmax: int,
    keep: Optional[Tensor],
    dtype: torch.dtype,
) -> Tensor:
    real = x.to(scale.dtype)
    out = dequantize(
        quantize(real, scale, zero_point, qmin, qmax), scale, zero_point
    )
    if keep is not None:
        out = torch.where(keep > 0, out, real)
    return out.to(dtype)


def _fake_quantize_in_layout(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    qmin: int,
    qmax: int,
    keep: Optional[Tensor],
) -> Tensor:
    """Run the kernel; return its output in the shape and layout of ``x``."""
    if scale.dim() > 1:  # Of heads.
        heads = _by_head(x, scale)
        keep = None if keep is None else keep.view(heads.shape)
        return _fake_quantize(
            heads,
            scale.view(-1, 1),
            zero_point,
            qmin,
            qmax,
            keep,
            compute_dtype(x),
        ).view(x.shape)
    out = _fake_quantize(
        to_flat(x), scale, zero_point, qmin, qmax, keep, compute_dtype(x)
    )
    return from_flat(out, x)


def _fake_quantize_grads(
    grad: Tensor,
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    qmin: int,
    qmax: int,
    keep: Optional[Tensor],
) -> tuple[Tensor, Tensor]:
    """Return the gradients for ``x`` and for the scale's logarithm.

    The second one is that of each element, not yet summed.
    """
    dtype = x.dtype
    x, grad = x.to(scale.dtype), grad.to(scale.dtype)
    q = torch.round(x / scale) + zero_point
    inside = (q >= qmin) & (q <= qmax)
    out = dequantize(q.clamp(qmin, qmax), scale, zero_point)
    quantized_grad = grad if keep is None else grad * keep
    grad_log_scale = quantized_grad * (out - torch.where(inside, x, 0))
    grad_x = torch.where(inside, grad, grad - quantized_grad)
    return grad_x.to(dtype), grad_log_scale


@Kernel
def _fake_quantize_backward(
    grad: Tensor,
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    qmin: int,
    qmax: int,
    keep: Optional[Tensor],
) -> tuple[Tensor, Tensor]:
    grad_x, grad_log_scale = _fake_quantize_grads(
        grad, x, scale, zero_point, qmin, qmax, keep
    )
    return grad_x, grad_log_scale.sum()


@Kernel
def _fake_quantize_by_head_backward(
    grad: Tensor,
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    qmin: int,
    qmax: int,
    keep: Optional[Tensor],
) -> tuple[Tensor, Tensor]:
    grad_x, grad_log_scale = _fake_quantize_grads(
        grad, x, scale, zero_point, qmin, qmax, keep
    )
    return grad_x, grad_log_scale.sum((0, 2))


@Kernel
def _log_scale_backward(
    grad: Tensor,
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    qmin: int,
    qmax: int,
    keep: Optional[Tensor],
) -> Tensor:
    _, grad_log_scale = _fake_quantize_grads(
        grad, x, scale, zero_point, qmin, qmax, keep
    )
    return grad_log_scale.sum()


def fake_quantize(
    x: Tensor,
    log_scale: Tensor,
    initial_scale: Tensor,
    zero_point: Tensor,
    qmin: int,
    qmax: int,
    keep: Optional[Tensor] = None,
) -> Tensor:
    """Quantize and dequantize with a scale that is learned as a logarithm.

    The scale is ``initial_scale * exp(log_scale)``. Rounding passes
    gradients straight through. The gradient for the logarithm is that of
    LSQ (Esser et al., ICLR 2020, eq. 3) times the scale: ``sum(g * out) -
    sum(g * inside * x)``.

    Args:
        x (Tensor): Activations of any shape.
        log_scale (Tensor): Learned scalar, or H x 1 x 1; 0 leaves the scale
            as it is.
        initial_scale (Tensor): Positive, likewise.
        zero_point (Tensor): Scalar in ``[qmin, qmax]``.
        qmin (int): Smallest integer.
        qmax (int): Largest integer.
        keep (Tensor, optional): A 0 or 1 for each element, in the order of
            memory: elements with 1 are quantized, the others stay real
            (QDrop, Wei et al., ICLR 2022). Default: all are quantized.

    Returns:
        Tensor: In the shape of ``x``, in the dtype that layers compute in.

    Raises:
        ValueError: If ``x`` has not as many heads as there are scales.
    """
    if is_traced():
        scale = initial_scale * log_scale.exp()
        return _fake_quantize_in_layout(
            x, scale, zero_point.to(scale.dtype), qmin, qmax, keep
        )
    return _FakeQuantize.apply(
        x, log_scale, initial_scale, zero_point, qmin, qmax, keep
    )
