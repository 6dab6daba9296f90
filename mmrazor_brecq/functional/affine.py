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


def integer_range(bits: int, signed: bool) -> tuple[int, int]:
    """Return the smallest and the largest integer of a bit width.

    Args:
        bits (int): Bit width, 2 to 8 or 16.
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


def compute_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype that layers compute in: autocast's, else that of x."""
    device = x.device.type
    if torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return x.dtype
