"""Affine quantization: real values to integers, and back.

A real value ``x`` is quantized to ``q = clamp(round(x / scale) + zero_point,
qmin, qmax)`` and dequantized to ``(q - zero_point) * scale``. The real zero is
always represented exactly, so that padding stays exact.
"""

from __future__ import annotations

from typing import Any, Optional

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..runtime.kernels import Kernel, is_traced
from .layout import from_flat, to_flat


def integer_range(bits: int, signed: bool) -> tuple[int, int]:
    """Return the smallest and the largest integer of a bit width.

    Args:
        bits (int): Bit width, 2 to 8.
        signed (bool): Whether the range is centered at zero.

    Returns:
        tuple[int, int]: ``(-2^(bits-1), 2^(bits-1) - 1)`` if signed, else
        ``(0, 2^bits - 1)``.
    """
    half = 2 ** (bits - 1)
    return (-half, half - 1) if signed else (0, 2 * half - 1)


def quantize(
    x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int
) -> Tensor:
    """Quantize to the nearest integers.

    Example:
        >>> x = torch.tensor([-1.0, 0.0, 0.26, 9.0])
        >>> quantize(x, torch.tensor(0.5), torch.tensor(2), 0, 15)
        tensor([ 0.,  2.,  3., 15.])

    Args:
        x (Tensor): Real values.
        scale (Tensor): Positive scales, broadcastable to ``x``.
        zero_point (Tensor): Zero points, broadcastable to ``x``.
        qmin (int): Smallest integer.
        qmax (int): Largest integer.

    Returns:
        Tensor: Integers in ``[qmin, qmax]``, in the dtype of ``x``.
    """
    return torch.clamp(torch.round(x / scale) + zero_point, qmin, qmax)


def dequantize(q: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """Return the real values of integers: ``(q - zero_point) * scale``."""
    return (q - zero_point) * scale


class _DequantizeRows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        scale: Tensor,
        zero_point: Tensor,
        qmin: int,
        qmax: int,
    ) -> Tensor:
        ctx.save_for_backward(q, scale, zero_point)
        ctx.range = qmin, qmax
        dtype = compute_dtype(q)
        return _dequantize_rows(q, scale, zero_point, qmin, qmax, dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Optional[Tensor], ...]:
        q, scale, zero_point = ctx.saved_tensors
        grad_q, grad_scale = _dequantize_rows_backward(
            grad, q, scale, zero_point, *ctx.range
        )
        return grad_q, grad_scale.sum_to_size(scale.shape), None, None, None


def dequantize_clamped(
    q: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    qmin: int,
    qmax: int,
    dtype: torch.dtype,
) -> Tensor:
    """Clamp and dequantize, as a part of a kernel.

    See :func:`dequantize_rows`. There is no zero point left in ``q``.
    """
    return (q.clamp(qmin - zero_point, qmax - zero_point) * scale).to(dtype)


def dequantize_clamped_backward(
    grad: Tensor,
    q: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    qmin: int,
    qmax: int,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of :func:`dequantize_clamped`.

    Returns:
        tuple[Tensor, Tensor]: For ``q``, C x K, and for the scale, C x 1.
    """
    low, high = qmin - zero_point, qmax - zero_point
    clamped = q.clamp(low, high)
    grad_scale = (grad * clamped).sum(1, keepdim=True)
    return torch.where(q == clamped, grad * scale, 0), grad_scale


_dequantize_rows = Kernel(dequantize_clamped)
_dequantize_rows_backward = Kernel(dequantize_clamped_backward)


def dequantize_rows(
    q: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int
) -> Tensor:
    """Clamp integers to their range and dequantize them, row by row.

    Gradients reach ``q``, where it is not clamped, and ``scale``.

    Args:
        q (Tensor): C x K integers, or their continuous relaxation, from
            which the zero point is subtracted already.
        scale (Tensor): C x 1 or 1 x 1.
        zero_point (Tensor): C x 1 or 1 x 1.
        qmin (int): Smallest integer.
        qmax (int): Largest integer.

    Returns:
        Tensor: C x K real values, in the dtype that layers compute in.
    """
    if is_traced():
        dtype = compute_dtype(q)
        return dequantize_clamped(q, scale, zero_point, qmin, qmax, dtype)
    return _DequantizeRows.apply(q, scale, zero_point, qmin, qmax)


def rounding_error(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    qmin: int,
    qmax: int,
    p: float,
) -> Tensor:
    """Return each row's mean ``L_p`` error under several quantizers.

    Args:
        x (Tensor): C x K real values.
        scale (Tensor): C x F positive scales, one for each quantizer.
        zero_point (Tensor): C x F.
        qmin (int): Smallest integer.
        qmax (int): Largest integer.
        p (float): Exponent.

    Returns:
        Tensor: C x F means of ``|x - dequantized|^p``.
    """
    if len(x) == 1 and x.shape[1] >= 2 * _PIECES:
        return _rounding_error_in_pieces(x, scale, zero_point, qmin, qmax, p)
    # The compiler makes another kernel for each dimension of size 1.
    has_ones = 1 in (*scale.shape, x.shape[1])
    error = _rounding_error.function if has_ones else _rounding_error
    return error(x, scale, zero_point, qmin, qmax, p)


#: Pieces that a single row is cut into.
_PIECES = 64


def _rounding_error_in_pieces(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    qmin: int,
    qmax: int,
    p: float,
) -> Tensor:
    """Cut a single row into several, so that the kernel for several fits."""
    whole = x.shape[1] // _PIECES * _PIECES
    pieces = x[:, :whole].view(_PIECES, -1)
    scales, zero_points = (v.repeat(_PIECES, 1) for v in (scale, zero_point))
    error = rounding_error(pieces, scales, zero_points, qmin, qmax, p)
    error = error.mean(0, keepdim=True)
    rest = x[:, whole:]
    if rest.shape[1]:
        rest_error = _rounding_error.function(
            rest, scale, zero_point, qmin, qmax, p
        )
        error = torch.lerp(rest_error, error, whole / x.shape[1])
    return error


@Kernel
def _rounding_error(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    qmin: int,
    qmax: int,
    p: float,
) -> Tensor:
    scale, zero_point = scale[..., None], zero_point[..., None]
    x = x[:, None]
    q = quantize(x, scale, zero_point, qmin, qmax)
    error = (dequantize(q, scale, zero_point) - x).abs()
    # exp(p log(error)) is faster than a power; errors below 1e-12 are
    # negligible.
    return (p * error.clamp(min=1e-12).log()).exp().mean(-1)


class _FakeQuantize(torch.autograd.Function):
    """Quantize and dequantize with one learned scale, and QDrop.

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
    """Return the gradients for ``x`` and for the scale's logarithm."""
    dtype = x.dtype
    x, grad = x.to(scale.dtype), grad.to(scale.dtype)
    q = torch.round(x / scale) + zero_point
    inside = (q >= qmin) & (q <= qmax)
    out = dequantize(q.clamp(qmin, qmax), scale, zero_point)
    quantized_grad = grad if keep is None else grad * keep
    grad_log_scale = (quantized_grad * (out - torch.where(inside, x, 0))).sum()
    grad_x = torch.where(inside, grad, grad - quantized_grad)
    return grad_x.to(dtype), grad_log_scale


_fake_quantize_backward = Kernel(_fake_quantize_grads)


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
    return grad_log_scale


def compute_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype that layers compute in: autocast's, else that of x."""
    device = x.device.type
    if torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return x.dtype


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
        log_scale (Tensor): Learned scalar; 0 leaves the scale as it is.
        initial_scale (Tensor): Positive scalar.
        zero_point (Tensor): Scalar in ``[qmin, qmax]``.
        qmin (int): Smallest integer.
        qmax (int): Largest integer.
        keep (Tensor, optional): A 0 or 1 for each element, in the order of
            memory: elements with 1 are quantized, the others stay real
            (QDrop, Wei et al., ICLR 2022). Default: all are quantized.

    Returns:
        Tensor: In the shape of ``x``, in the dtype that layers compute in.
    """
    if is_traced():
        scale = initial_scale * log_scale.exp()
        return _fake_quantize_in_layout(
            x, scale, zero_point.to(scale.dtype), qmin, qmax, keep
        )
    return _FakeQuantize.apply(
        x, log_scale, initial_scale, zero_point, qmin, qmax, keep
    )
