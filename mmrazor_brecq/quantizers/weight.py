"""The quantizer of one layer's weights."""

from __future__ import annotations

from typing import Any, Optional

import torch
from torch import Tensor, nn

from ..functional import dequantize_rows, from_rows, to_rows
from ..registry import MODELS, TASK_UTILS
from ..validation import Bits, Count
from .observers import Grid, ObserverConfig
from .rounding import RoundingConfig


@MODELS.register_module()
class WeightQuantizer(nn.Module):
    """Weights on a grid of integers, a step for every output channel.

    The integers are signed, so that they fit ``int8`` at every width. What
    ``forward`` does follows from what it is given: integers are only
    dequantized, real weights are rounded first, by the rounding that is
    being learned or else to the nearest. Until its steps are chosen they
    pass as they are.

    Args:
        out_channels (int): First dimension of the weight.
        bits (int): Width, 2 to 8.
        symmetric (bool): Whether zero stands at the integer 0.
        per_channel (bool): One step for every output channel, or one for
            the layer.
        learn_scale (bool): Whether reconstruction fits the steps together
            with the rounding.
        observer (dict): Which grid to choose.
        rounding (dict): How reconstruction rounds.
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
        self.observer = TASK_UTILS.build(observer or dict(type='LpObserver'))
        self.rounding_cfg = rounding or dict(type='AdaRound')
        self.rounding: Any = None
        self.log_scale: Optional[nn.Parameter] = None
        self.pace = 1.0
        self.active = False
        groups = out_channels if per_channel else 1
        self.register_buffer('scale', torch.full((groups,), torch.nan))
        self.register_buffer(
            'zero_point', torch.zeros(groups, dtype=torch.int8)
        )
        self.register_buffer('bits', torch.tensor(bits, dtype=torch.uint8))

    def fit(self, weight: Tensor) -> None:
        """Choose scale and zero point.

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
        """Switch to a rounding that is learned.

        Args:
            weight (Tensor): C x ... real weights.
            rounding (dict, optional): In place of the configured one.
        """
        self.rounding = MODELS.build(rounding or self.rounding_cfg)
        self.rounding.start(to_rows(weight.detach()) / self.scale[:, None])
        if self.learn_scale:
            self.log_scale = nn.Parameter(torch.zeros_like(self.scale))
            # A step moves all its weights: the more there are, the slower.
            self.pace = (len(self.scale) / weight.numel()) ** 0.5

    def forward(self, weight: Tensor) -> Tensor:
        """Real weights on the grid, in the shape of ``weight``."""
        if not self.active and weight.is_floating_point():
            return weight
        step = self._step()
        zero_point = self.zero_point[:, None].to(step.dtype)
        grid = step[:, None], zero_point, *self.grid.range
        if self.rounding is not None and weight.is_floating_point():
            values = self.rounding.values(*grid)
        else:
            values = dequantize_rows(self._integers(weight), *grid)
        return from_rows(values, weight)

    @torch.no_grad()
    def freeze(self, weight: Tensor) -> Tensor:
        """End learning: the integers, ``int8``, in the shape of ``weight``."""
        self.eval()
        integers = self._integers(weight) + self.zero_point[:, None]
        integers = integers.clamp(*self.grid.range).to(torch.int8)
        self.scale.copy_(self._step())
        self.forget()
        return from_rows(integers, weight)

    @torch.no_grad()
    def thaw(self, integers: Tensor, near: Tensor) -> Tensor:
        """Real weights that round to the integers.

        Args:
            integers (Tensor): C x ..., what :meth:`freeze` gave.
            near (Tensor): C x ... real weights: the result is as close to
                them as it can be without coming near a rounding's edge.
        """
        step = self.scale[:, None]
        whole = self._integers(integers)
        rest = (to_rows(near, integers) / step - whole).clamp(-0.4, 0.4)
        return from_rows((whole + rest) * step, integers)

    def forget(self) -> None:
        """Back to nearest rounding at the steps that were fitted."""
        self.rounding = self.log_scale = None

    def trainable(self) -> list[nn.Parameter]:
        """The parameters that decide the rounding."""
        return (
            [] if self.rounding is None else list(self.rounding.parameters())
        )

    def _step(self) -> Tensor:
        """The steps, as far as they have been learned."""
        if self.log_scale is None:
            return self.scale
        return self.scale * (self.pace * self.log_scale).exp()

    def _integers(self, weight: Tensor) -> Tensor:
        """C x K integers less the zero point, before they are clamped."""
        if not weight.is_floating_point():
            return (
                to_rows(weight).to(self.scale.dtype) - self.zero_point[:, None]
            )
        if self.rounding is not None:
            return self.rounding()
        return (to_rows(weight) / self.scale[:, None]).round()

    def _load_from_state_dict(
        self, state_dict: dict, prefix: str, *args: Any
    ) -> None:
        self.grid.check_bits(state_dict, prefix)
        self.grid.check_values(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.active = bool(self.scale.isfinite().all())

    def extra_repr(self) -> str:
        return f'{self.grid}, per_channel={self.per_channel}'
