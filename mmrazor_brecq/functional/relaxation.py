"""A continuous relaxation of rounding (AdaRound, Nagel et al., ICML 2020)."""

from __future__ import annotations

from typing import Any, Optional

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..runtime.kernels import Kernel
from .affine import (
    compute_dtype,
    dequantize_clamped,
    dequantize_clamped_backward,
)


def rectified_sigmoid(alpha: Tensor) -> Tensor:
    """Return ``clip(sigmoid(alpha) * (zeta - gamma) + gamma, 0, 1)``.

    See eq. 23 of AdaRound; ``zeta`` is 1.1 and ``gamma`` is -0.1.
    """
    return _stretch(torch.sigmoid(alpha)).clamp(0, 1)


def inverse_rectified_sigmoid(h: Tensor) -> Tensor:
    """Return the ``alpha`` whose rectified sigmoid is ``h``, in [0, 1]."""
    return torch.logit((h + 0.1) / 1.2)


def _stretch(sigmoid: Tensor) -> Tensor:
    # Literals, since a kernel takes the value of a name as one more tensor.
    return 1.2 * sigmoid - 0.1


class _RelaxedRows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        penalty: Optional[FusedPenalty],
        alpha: Tensor,
        base: Tensor,
        scale: Tensor,
        zero_point: Tensor,
        qmin: int,
        qmax: int,
    ) -> Tensor:
        dtype = compute_dtype(alpha)
        values, sigmoid = _relaxed_rows(
            alpha, base, scale, zero_point, qmin, qmax, dtype
        )
        ctx.save_for_backward(sigmoid, base, scale, zero_point)
        ctx.range, ctx.penalty = (qmin, qmax), penalty
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Optional[Tensor], ...]:
        sigmoid, base, scale, zero_point = ctx.saved_tensors
        penalty = ctx.penalty.take() if ctx.penalty else None
        if penalty is None:
            penalty = sigmoid.new_zeros(2)
        grad_alpha, grad_scale = _relaxed_rows_backward(
            penalty, grad, sigmoid, base, scale, zero_point, *ctx.range
        )
        grad_scale = grad_scale.sum_to_size(scale.shape)
        return None, grad_alpha, None, grad_scale, None, None, None


@Kernel
def _relaxed_rows(
    alpha: Tensor,
    base: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    qmin: int,
    qmax: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Return the real values, and the sigmoid of ``alpha``."""
    sigmoid = torch.sigmoid(alpha)
    h = _stretch(sigmoid).clamp(0, 1)
    values = dequantize_clamped(base + h, scale, zero_point, qmin, qmax, dtype)
    return values, sigmoid


@Kernel
def _relaxed_rows_backward(
    penalty: Tensor,
    grad: Tensor,
    sigmoid: Tensor,
    base: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    qmin: int,
    qmax: int,
) -> tuple[Tensor, Tensor]:
    """Return the gradients for ``alpha`` and for the scale.

    ``penalty`` holds the weight and ``beta`` of the rounding penalty, whose
    gradient is added.
    """
    h, derivative = _rectified_with_derivative(sigmoid)
    grad_h, grad_scale = dequantize_clamped_backward(
        grad, base + h, scale, zero_point, qmin, qmax
    )
    grad_penalty = penalty[0] * _penalty_derivative(h, penalty[1])
    return (grad_h + grad_penalty) * derivative, grad_scale


def _rectified_with_derivative(sigmoid: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rectified sigmoid and its derivative for ``alpha``."""
    h = _stretch(sigmoid)
    derivative = 1.2 * sigmoid * (1 - sigmoid)
    return h.clamp(0, 1), torch.where(h * (1 - h) > 0, derivative, 0)


def _penalty_derivative(h: Tensor, beta: Tensor) -> Tensor:
    """Return the derivative of ``1 - |2 h - 1|^beta`` for ``h``.

    The power is at least ``e ** -40``, since floats below 1e-38 (denormal)
    are about 100 times slower than others.
    """
    centered = 2 * h - 1
    log = centered.abs().clamp(min=1e-12).log()
    power = ((beta - 2) * log).clamp(min=-40).exp()
    return -2 * beta * power * centered


def relaxed_rows(
    alpha: Tensor,
    base: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    qmin: int,
    qmax: int,
    penalty: Optional[FusedPenalty] = None,
) -> Tensor:
    """Return the real values of the relaxed integers ``base + h(alpha)``.

    It computes :func:`mmrazor_brecq.functional.dequantize_rows` of them, in
    one kernel.

    Args:
        alpha (Tensor): C x K; ``h`` is :func:`rectified_sigmoid`.
        base (Tensor): C x K integers.
        scale (Tensor): C x 1 or 1 x 1.
        zero_point (Tensor): C x 1 or 1 x 1.
        qmin (int): Smallest integer.
        qmax (int): Largest integer.
        penalty (FusedPenalty, optional): A penalty whose gradient is added
            to that of the values.

    Returns:
        Tensor: C x K, in the dtype that layers compute in.
    """
    return _RelaxedRows.apply(
        penalty, alpha, base, scale, zero_point, qmin, qmax
    )


def rounding_penalty(alpha: Tensor, beta: float) -> Tensor:
    """Return ``sum(1 - |2 h(alpha) - 1|^beta)`` (AdaRound, eq. 24).

    It is 0 if every weight is rounded up or down, and pushes each weight in
    between to the nearer side. This is the plain form;
    :class:`FusedPenalty` has the same gradient.

    Example:
        >>> rounding_penalty(torch.tensor([-9.0, 0.0, 9.0]), beta=2.0)
        tensor(1.)

    Args:
        alpha (Tensor): Any shape; ``h`` is :func:`rectified_sigmoid`.
        beta (float): Exponent, more than 1.

    Returns:
        Tensor: A scalar.
    """
    return (1 - (2 * rectified_sigmoid(alpha) - 1).abs().pow(beta)).sum()


class FusedPenalty:
    """The rounding penalty, its gradient computed with that of the weights.

    The gradient of :func:`rounding_penalty` needs the same intermediate
    values as that of :func:`relaxed_rows`, so one kernel computes both: the
    backward pass of the penalty only stores its weight and ``beta`` here.
    Autograd runs in the reverse order of the forward pass, so call it after
    :func:`relaxed_rows`.

    It saves 14 % of an iteration of the ``default`` schedule for the demo's
    ResNet-18 and 7 % for its MobileNetV2, compared with
    :func:`rounding_penalty`. This was measured after the warmup, in float32
    with one thread: iterations of a unit used both forms in turn, and the
    medians of their CPU times were summed over all units, weighted by their
    layers.
    """

    def __init__(self) -> None:
        #: Weight and ``beta``, from the penalty's backward pass until that
        #: of the weights.
        self.waiting: Optional[Tensor] = None

    def __call__(self, alpha: Tensor, beta: float) -> Tensor:
        """Return a scalar with the gradient of :func:`rounding_penalty`.

        Its value is not computed, and is 0.

        Args:
            alpha (Tensor): That of :func:`relaxed_rows`.
            beta (float): Exponent, more than 1.
        """
        return _DeferredPenalty.apply(alpha, beta, self)

    def take(self) -> Optional[Tensor]:
        """Return and forget the stored weight and ``beta``.

        A batch that runs in several parts thus counts the penalty once.
        """
        waiting, self.waiting = self.waiting, None
        return waiting


class _DeferredPenalty(torch.autograd.Function):
    """A zero whose gradient is left to :func:`relaxed_rows`."""

    @staticmethod
    def forward(
        ctx: Any, alpha: Tensor, beta: float, penalty: FusedPenalty
    ) -> Tensor:
        ctx.beta, ctx.penalty = beta, penalty
        return alpha.new_zeros(())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None, None]:
        ctx.penalty.waiting = torch.stack([grad, grad.new_tensor(ctx.beta)])
        return None, None, None


def annealed_beta(
    progress: float, warmup: float = 0.2, start: float = 20.0, end: float = 2.0
) -> float:
    """Return the penalty's exponent: constant at first, then linear.

    Example:
        >>> [annealed_beta(x) for x in (0.0, 0.2, 0.6, 1.0)]
        [20.0, 20.0, 11.0, 2.0]

    Args:
        progress (float): Fraction of the iterations done, 0 to 1.
        warmup (float): Fraction during which the exponent stays at
            ``start``.
        start (float): First exponent.
        end (float): Last exponent.
    """
    left = (1 - progress) / (1 - warmup)
    return end + (start - end) * min(1.0, max(0.0, left))
