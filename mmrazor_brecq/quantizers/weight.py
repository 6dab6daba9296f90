"""Quantizer of the weights of one layer."""

from __future__ import annotations

from typing import Any, Optional

import torch
from torch import Tensor, nn

from ..functional import dequantize_rows, from_rows, to_rows
from ..registry import MODELS, TASK_UTILS
from ..validation import Bits, Count
from .observers import Grid, Observer, ObserverConfig
from .rounding import Rounding, RoundingConfig


@MODELS.register_module()
class WeightQuantizer(nn.Module):
    """Quantizer of weights, with one scale for each output channel.

    The integers are signed, so they fit ``int8`` for every bit width. The
    type of its input decides what ``forward`` does. Integers are
    dequantized. Real weights are rounded first: by the rounding that is
    learned, or else to the nearest integer. Before :meth:`fit`, real weights
    are returned unchanged.

    Args:
        out_channels (int): Size of the weight's first dimension.
        bits (int): Bit width, 2 to 8.
        symmetric (bool): Whether the zero point is 0.
        per_channel (bool): If true, use one scale for each output channel,
            else one for the layer.
        learn_scale (bool): Whether reconstruction learns the scales together
            with the rounding.
        observer (dict): Config of the observer that chooses the first scales
            and zero points; by default :class:`LpObserver`.
        rounding (dict): Config of the rounding that reconstruction learns;
            by default :class:`AdaRound`.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> weight = torch.randn(16, 8, 3, 3)
        >>> quantizer = WeightQuantizer(16, bits=4)
        >>> quantizer.fit(weight)
        >>> quantizer.freeze(weight).dtype
        torch.int8
    """

    scale: Tensor
    zero_point: Tensor
    bits: Tensor

    def __init__(
        self,
        out_channels: Count,
        bits: Bits = 8,
        symmetric: bool = False,
        per_channel: bool = True,
        learn_scale: bool = True,
        observer: Optional[ObserverConfig] = None,
        rounding: Optional[RoundingConfig] = None,
    ) -> None:
        super().__init__()
        self.grid = Grid(bits, symmetric, signed=True)
        self.per_channel = per_channel
        self.learn_scale = learn_scale
        self.observer: Observer = TASK_UTILS.build(
            observer or dict(type='LpObserver')
        )
        self.rounding_cfg = rounding or dict(type='AdaRound')
        self.rounding: Optional[Rounding] = None
        self.log_scale: Optional[nn.Parameter] = None
        #: The scale is multiplied by ``exp(log_scale_factor * log_scale)``.
        self.log_scale_factor = 1.0
        self.active = False
        groups = out_channels if per_channel else 1
        self.register_buffer('scale', torch.full((groups,), torch.nan))
        self.register_buffer(
            'zero_point', torch.zeros(groups, dtype=torch.int8)
        )
        self.register_buffer('bits', torch.tensor(bits, dtype=torch.uint8))

    def fit(self, weight: Tensor) -> None:
        """Choose scales and zero points.

        Args:
            weight (Tensor): C x ..., finite.
        """
        values = to_rows(weight.detach())
        if not self.per_channel:
            values = values.reshape(1, -1)
        scale, zero_point = self.observer(values, self.grid)
        self.scale.copy_(scale)
        self.zero_point.copy_(zero_point)
        self.active = True

    def learn(self, weight: Tensor, rounding: Optional[dict] = None) -> None:
        """Begin to learn rounding and scales.

        Args:
            weight (Tensor): Real weights, C x ...
            rounding (dict, optional): Config of a rounding to use in place
                of the one in the quantizer's config.
        """
        learned = MODELS.build(rounding or self.rounding_cfg)
        self.rounding = learned
        learned.start(to_rows(weight.detach()) / self.scale[:, None])
        if self.learn_scale:
            self.log_scale = nn.Parameter(torch.zeros_like(self.scale))
            # A scale moves all its weights, so the more weights it has, the
            # smaller its changes have to be.
            self.log_scale_factor = (len(self.scale) / weight.numel()) ** 0.5

    def forward(self, weight: Tensor) -> Tensor:
        """Return real weights on the grid.

        Args:
            weight (Tensor): Real weights or ``int8``, C x ...

        Returns:
            Tensor: Real weights in the shape of ``weight``.
        """
        if not self.active and weight.is_floating_point():
            return weight
        scale = self._current_scale()
        zero_point = self.zero_point[:, None].to(scale.dtype)
        grid = scale[:, None], zero_point, *self.grid.range
        if self.rounding is not None and weight.is_floating_point():
            values = self.rounding.values(*grid)
        else:
            values = dequantize_rows(self._integers(weight), *grid)
        return from_rows(values, weight)

    @torch.no_grad()
    def freeze(self, weight: Tensor) -> Tensor:
        """End learning, keep the learned scales and return the integers.

        Args:
            weight (Tensor): Real weights, C x ...

        Returns:
            Tensor: ``int8``, in the shape of ``weight``.
        """
        self.eval()
        integers = self._integers(weight) + self.zero_point[:, None]
        integers = integers.clamp(*self.grid.range).to(torch.int8)
        self.scale.copy_(self._current_scale())
        self.forget()
        return from_rows(integers, weight)

    @torch.no_grad()
    def thaw(self, integers: Tensor, float_weight: Tensor) -> Tensor:
        """Return real weights whose nearest integers are the given ones.

        Args:
            integers (Tensor): Result of :meth:`freeze`, C x ...
            float_weight (Tensor): Real weights, C x ... The result is as
                close to them as possible, but at most 0.4 scales from its
                integer, so that noise does not change the rounding.

        Returns:
            Tensor: Real weights, in the shape of ``integers``.
        """
        scale = self.scale[:, None]
        whole = self._integers(integers)
        rest = (to_rows(float_weight, integers) / scale - whole).clamp(
            -0.4, 0.4
        )
        return from_rows((whole + rest) * scale, integers)

    def forget(self) -> None:
        """End learning and return to nearest rounding and the first scales."""
        self.rounding = self.log_scale = None

    def trainable(self) -> list[nn.Parameter]:
        """Return the parameters of the rounding."""
        return (
            [] if self.rounding is None else list(self.rounding.parameters())
        )

    def _current_scale(self) -> Tensor:
        """Return the scales, with the changes learned so far."""
        if self.log_scale is None:
            return self.scale
        return self.scale * (self.log_scale_factor * self.log_scale).exp()

    def _integers(self, weight: Tensor) -> Tensor:
        """Return integers less the zero point, C x K, not yet clamped."""
        if not weight.is_floating_point():
            return (
                to_rows(weight).to(self.scale.dtype) - self.zero_point[:, None]
            )
        if self.rounding is not None:
            return self.rounding()
        return (to_rows(weight) / self.scale[:, None]).round()

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *args: Any
    ) -> None:
        self.grid.check_bits(state_dict, prefix)
        self.grid.check_values(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.active = bool(self.scale.isfinite().all())

    def extra_repr(self) -> str:
        return f'{self.grid}, per_channel={self.per_channel}'
