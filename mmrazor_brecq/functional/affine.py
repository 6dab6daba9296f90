"""Affine quantization: real values on a grid of integers.

A real ``x`` stands on the grid as ``q = clamp(round(x / scale) +
zero_point, qmin, qmax)`` and comes back as ``(q - zero_point) * scale``.
Zero is always a point of the grid, so padding stays exact.
"""

from __future__ import annotations

from typing import Any, Optional

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..runtime.kernels import Kernel, is_traced
from .layout import from_flat, to_flat


def integer_range(bits: int, signed: bool) -> tuple[int, int]:
    """Smallest and largest integer of a grid.

    Args:
        bits (int): Width, 2 to 8.
        signed (bool): Whether the grid is centred at zero.

    Returns:
        tuple[int, int]: ``(-2^(b-1), 2^(b-1) - 1)`` or ``(0, 2^b - 1)``.
    """
    half = 2 ** (bits - 1)
    return (-half, half - 1) if signed else (0, 2 * half - 1)


def quantize(
    x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int
) -> Tensor:
    """The nearest integers on the grid.

    Args:
        x (Tensor): Real values.
        scale (Tensor): Positive steps, broadcastable to ``x``.
        zero_point (Tensor): The integers at which zero stands.
        qmin (int): Smallest integer.
        qmax (int): Largest integer.

    Returns:
        Tensor: Integers in ``[qmin, qmax]``, in the dtype of ``x``.
    """
    return torch.clamp(torch.round(x / scale) + zero_point, qmin, qmax)


class _DequantizeRows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        step: Tensor,
        zero_point: Tensor,
        qmin: int,
        qmax: int,
    ) -> Tensor:
        ctx.save_for_backward(q, step, zero_point)
        ctx.range = qmin, qmax
        dtype = compute_dtype(q)
        return _dequantize_rows(q, step, zero_point, qmin, qmax, dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Optional[Tensor], ...]:
        q, step, zero_point = ctx.saved_tensors
        grad_q, grad_step = _dequantize_rows_backward(
            grad, q, step, zero_point, *ctx.range
        )
        return grad_q, grad_step.sum_to_size(step.shape), None, None, None


def dequantize_clamped(
    q: Tensor,
    step: Tensor,
    zero_point: Tensor,
    qmin: int,
    qmax: int,
    dtype: torch.dtype,
) -> Tensor:
    """See :func:`dequantize_rows`; to be part of a kernel."""
    return (q.clamp(qmin - zero_point, qmax - zero_point) * step).to(dtype)


def dequantize_clamped_backward(
    grad: Tensor,
    q: Tensor,
    step: Tensor,
    zero_point: Tensor,
    qmin: int,
    qmax: int,
) -> tuple[Tensor, Tensor]:
    """Gradients of :func:`dequantize_clamped`: for ``q``, and C x 1."""
    low, high = qmin - zero_point, qmax - zero_point
    inside = q.clamp(low, high)
    grad_step = (grad * inside).sum(1, keepdim=True)
    return torch.where(q == inside, grad * step, 0), grad_step


_dequantize_rows = Kernel(dequantize_clamped)
_dequantize_rows_backward = Kernel(dequantize_clamped_backward)


def dequantize_rows(
    q: Tensor, step: Tensor, zero_point: Tensor, qmin: int, qmax: int
) -> Tensor:
    """Real values of integers that may lie beyond the grid, row by row.

    Args:
        q (Tensor): C x K integers, or what relaxes them, less the zero
            point.
        step (Tensor): C x 1 or 1 x 1.
        zero_point (Tensor): Likewise.
        qmin (int): Smallest integer.
        qmax (int): Largest integer.

    Returns:
        Tensor: C x K, in the type that layers compute in.
    """
    if is_traced():
        dtype = compute_dtype(q)
        return dequantize_clamped(q, step, zero_point, qmin, qmax, dtype)
    return _DequantizeRows.apply(q, step, zero_point, qmin, qmax)


def dequantize(q: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """Real values of integers: ``(q - zero_point) * scale``."""
    return (q - zero_point) * scale


def rounding_error(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    qmin: int,
    qmax: int,
    p: float,
) -> Tensor:
    """How much each row loses on each of several grids, in the ``L_p`` sense.

    Args:
        x (Tensor): C x K real values.
        scale (Tensor): C x F positive steps.
        zero_point (Tensor): C x F.
        qmin (int): Smallest integer.
        qmax (int): Largest integer.
        p (float): Exponent.

    Returns:
        Tensor: C x F means of ``|x - x_on_the_grid|^p``.
    """
    if len(x) == 1 and x.shape[1] >= 2 * _PIECES:
        return _in_pieces(x, scale, zero_point, qmin, qmax, p)
    # A dimension of 1 is a shape of its own to the compiler.
    alone = 1 in (*scale.shape, x.shape[1])
    error = _rounding_error.function if alone else _rounding_error
    return error(x, scale, zero_point, qmin, qmax, p)


#: What a row of its own is cut into.
_PIECES = 64


def _in_pieces(
    x: Tensor, scale: Tensor, zero_point: Tensor, *args: Any
) -> Tensor:
    """The same for a single row, cut into several so that one kernel fits."""
    whole = x.shape[1] // _PIECES * _PIECES
    pieces = x[:, :whole].view(_PIECES, -1)
    grids = scale.repeat(_PIECES, 1), zero_point.repeat(_PIECES, 1)
    error = rounding_error(pieces, *grids, *args).mean(0, keepdim=True)
    rest = x[:, whole:]
    if rest.shape[1]:
        others = _rounding_error.function(rest, scale, zero_point, *args)
        error = torch.lerp(others, error, whole / x.shape[1])
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
    # Quicker than a power; what is below counts for nothing.
    return (p * error.clamp(min=1e-12).log()).exp().mean(-1)


class _FakeQuantize(torch.autograd.Function):
    """Quantize and dequantize with one learned step, optionally dropped.

    Saves nothing but its input: the backward pass finds again what was
    inside the range.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        log_scale: Tensor,
        scale: Tensor,
        zero_point: Tensor,
        qmin: int,
        qmax: int,
        keep: Optional[Tensor],
    ) -> Tensor:
        step = scale * log_scale.exp()
        zero_point = zero_point.to(step.dtype)  # one type: one fast kernel
        ctx.save_for_backward(x, step, zero_point, keep)
        ctx.range = qmin, qmax
        return _mixed_like(x, step, zero_point, qmin, qmax, keep)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Optional[Tensor], ...]:
        x, step, zero_point, keep = ctx.saved_tensors
        operands = (
            to_flat(grad, x),
            to_flat(x),
            step,
            zero_point,
            *ctx.range,
            keep,
        )
        if ctx.needs_input_grad[0]:
            grad_x, grad_log_scale = _mixed_backward(*operands)
            grad_x = from_flat(grad_x, x)
        else:
            grad_x, grad_log_scale = None, _scale_backward(*operands)
        return grad_x, grad_log_scale, None, None, None, None, None


@Kernel
def _mixed(
    x: Tensor,
    step: Tensor,
    zero_point: Tensor,
    qmin: int,
    qmax: int,
    keep: Optional[Tensor],
    dtype: torch.dtype,
) -> Tensor:
    real = x.to(step.dtype)
    out = dequantize(
        quantize(real, step, zero_point, qmin, qmax), step, zero_point
    )
    if keep is not None:
        out = torch.where(keep > 0, out, real)
    return out.to(dtype)


def _mixed_like(x: Tensor, *grid: Any) -> Tensor:
    """What the kernel makes of ``x``, in its shape and memory order."""
    return from_flat(_mixed(to_flat(x), *grid, compute_dtype(x)), x)


def _mixed_slopes(
    grad: Tensor,
    x: Tensor,
    step: Tensor,
    zero_point: Tensor,
    qmin: int,
    qmax: int,
    keep: Optional[Tensor],
) -> tuple[Tensor, Tensor]:
    dtype = x.dtype
    x, grad = x.to(step.dtype), grad.to(step.dtype)
    grid = torch.round(x / step) + zero_point
    inside = (grid >= qmin) & (grid <= qmax)
    out = dequantize(grid.clamp(qmin, qmax), step, zero_point)
    through = grad if keep is None else grad * keep
    grad_log_scale = (through * (out - torch.where(inside, x, 0))).sum()
    grad_x = torch.where(inside, grad, grad - through)
    return grad_x.to(dtype), grad_log_scale


_mixed_backward = Kernel(_mixed_slopes)


@Kernel
def _scale_backward(*operands: Any) -> Tensor:
    return _mixed_slopes(*operands)[1]


def compute_dtype(x: Tensor) -> torch.dtype:
    """What a layer computes in: autocast's type, or else that of ``x``."""
    device = x.device.type
    if torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return x.dtype


def fake_quantize(
    x: Tensor,
    log_scale: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    qmin: int,
    qmax: int,
    keep: Optional[Tensor] = None,
) -> Tensor:
    """Fake quantization with a step that is learned in the log domain.

    The step is ``scale * exp(log_scale)``. Rounding passes gradients
    straight through; the step's gradient is that of LSQ (Esser et al.,
    ICLR 2020, eq. 3) times the step, since it is taken for its logarithm:
    ``sum(g * out) - sum(g * inside * x)``.

    Args:
        x (Tensor): Activations of any shape.
        log_scale (Tensor): Learned, a scalar; 0 leaves ``scale`` as it is.
        scale (Tensor): Positive scalar.
        zero_point (Tensor): Scalar in ``[qmin, qmax]``.
        qmin (int): Smallest integer.
        qmax (int): Largest integer.
        keep (Tensor, optional): One 0 or 1 for each element, in the order
            of memory: 1 quantizes it, 0 leaves it (QDrop, Wei et al., ICLR
            2022). By default all elements are quantized.

    Returns:
        Tensor: In the shape of ``x``, in the type that layers compute in.
    """
    if is_traced():
        step = scale * log_scale.exp()
        return _mixed_like(
            x, step, zero_point.to(step.dtype), qmin, qmax, keep
        )
    return _FakeQuantize.apply(
        x, log_scale, scale, zero_point, qmin, qmax, keep
    )
