"""The quantizer of one activation tensor."""

from __future__ import annotations

from typing import Any, Optional

import torch
from torch import Tensor, nn

from ..functional import fake_quantize, from_flat, to_flat
from ..registry import MODELS, TASK_UTILS
from ..validation import Bits, Share
from .observers import Grid, ObserverConfig


@MODELS.register_module()
class ActivationQuantizer(nn.Module):
    """One learned step a tensor, LSQ in the log domain, with QDrop.

    It passes everything through until :meth:`fit` or a checkpoint gives it
    a scale, and from then on quantizes for good.

    Args:
        bits (int): Width, 2 to 8.
        symmetric (bool): Signed integers and no zero point; by default
            unsigned ones with a zero point.
        learn_scale (bool): Whether reconstruction fits the step.
        drop_prob (float): Share of elements that stay real during
            reconstruction, 0 to 1 (QDrop, Wei et al., ICLR 2022, where it
            is 0.5).
        observer (dict): Which grid to choose.
    """

    scale: Tensor
    zero_point: Tensor
    bits: Tensor
    #: Elements that an observer looks at.
    sample_size = 2**16

    def __init__(
        self,
        bits: Bits = 8,
        symmetric: bool = False,
        learn_scale: bool = True,
        drop_prob: Share = 0.25,
        observer: Optional[ObserverConfig] = None,
    ) -> None:
        super().__init__()
        self.grid = Grid(bits, symmetric, signed=symmetric)
        self.learn_scale = learn_scale
        self.drop_prob = drop_prob
        self.observer = TASK_UTILS.build(observer or dict(type='LpObserver'))
        self.log_scale: Optional[nn.Parameter] = None
        self.masks: Optional[MaskPool] = None
        self.active = False
        self.register_buffer('scale', torch.tensor(torch.nan))
        self.register_buffer('zero_point', torch.tensor(0, dtype=torch.int16))
        self.register_buffer('bits', torch.tensor(bits, dtype=torch.uint8))

    def sample(self, values: Tensor, part: int = 0, parts: int = 1) -> Tensor:
        """Some of many values, for :meth:`fit`.

        Args:
            values (Tensor): Activations, any shape.
            part (int): Which of the samples it is.
            parts (int): How many samples will be put together.

        Returns:
            Tensor: 1-dimensional.
        """
        values = values.detach().flatten()
        size = self.sample_size // parts
        if len(values) <= size:
            return values
        # Not every n-th: that would be the same few columns of an image.
        generator = torch.Generator().manual_seed(part)
        chosen = torch.randint(len(values), (size,), generator=generator)
        return values[chosen.to(values.device)]

    @torch.no_grad()
    def fit(self, values: Tensor) -> None:
        """Choose scale and zero point, and quantize from now on.

        Args:
            values (Tensor): Activations, finite, any shape.
        """
        sample = values.detach().flatten()
        scale, zero_point = self.observer(sample[None], self.grid)
        self.scale.copy_(scale[0])
        self.zero_point.copy_(zero_point[0])
        self.active = True

    def learn(self, masks: Optional[MaskPool] = None) -> None:
        """Begin to learn the step, dropping by ``masks`` if there are any."""
        self.log_scale = nn.Parameter(
            torch.zeros_like(self.scale), requires_grad=self.learn_scale
        )
        self.masks = masks

    def forward(self, x: Tensor) -> Tensor:
        """Quantized activations in the shape of ``x``."""
        if not self.active:
            return x
        log_scale, keep = torch.zeros_like(self.scale), None
        if self.log_scale is not None:
            log_scale = self.log_scale
            if self.training and self.masks is not None and self.drop_prob:
                keep = self.masks.cut(x.numel(), 1 - self.drop_prob)
        return fake_quantize(
            x, log_scale, self.scale, self.zero_point, *self.grid.range, keep
        )

    @torch.no_grad()
    def freeze(self) -> None:
        """End learning: the learned step becomes the scale."""
        if self.log_scale is not None:
            self.scale.mul_(self.log_scale.exp())
        self.forget()

    def forget(self) -> None:
        """Back to the step that was fitted."""
        self.log_scale = self.masks = None

    def trainable(self) -> list[nn.Parameter]:
        """The logarithm of the step, where it is learned."""
        learned = self.log_scale is not None and self.learn_scale
        return [self.log_scale] if learned else []  # type: ignore[list-item]

    def _load_from_state_dict(
        self, state_dict: dict, prefix: str, *args: Any
    ) -> None:
        self.grid.check_bits(state_dict, prefix)
        self.grid.check_values(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.active = bool(self.scale.isfinite())

    def extra_repr(self) -> str:
        return f'{self.grid}, drop_prob={self.drop_prob}'


class MaskPool:
    """Random masks cut from one pool at random places.

    Fresh random numbers for every element cost more than the convolution
    that they serve; a slice of a pool at a random offset costs nothing.

    Args:
        generator (torch.Generator): Where all randomness comes from.
        device (torch.device): Where the masks are needed.
        spare (int): Elements that the pool holds beyond the largest mask.
    """

    def __init__(
        self,
        generator: torch.Generator,
        device: torch.device,
        spare: int = 2**16,
    ) -> None:
        self.generator = generator
        self.device = device
        self.spare = spare
        self.pools: dict = {}

    def cut(self, size: int, prob: float) -> Tensor:
        """Ones with probability ``prob``, zeros else, 1-dimensional."""
        pool = self.pools.get(prob)
        if pool is None or len(pool) < size + self.spare:
            pool = (
                torch.rand(size + self.spare, generator=self.generator) < prob
            )
            pool = self.pools[prob] = pool.to(self.device, torch.float32)
        start = int(
            torch.randint(len(pool) - size + 1, (), generator=self.generator)
        )
        return pool[start : start + size]

    def mix(self, x: Tensor, y: Tensor, prob: float) -> Tensor:
        """Each element from ``x`` with probability ``prob``, else from
        ``y``, two tensors of one shape. What ``y`` held is lost.
        """
        mask = self.cut(x.numel(), prob)
        return from_flat(to_flat(y, x).lerp_(to_flat(x), mask), x)
