"""Quantizer of one activation tensor, and random masks for QDrop."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Optional

import torch
from torch import Tensor, nn

from ..functional import fake_quantize, from_flat, to_flat
from ..registry import MODELS, TASK_UTILS
from ..validation import ActivationBits, Count, Fraction
from .observers import Grid, Observer, ObserverConfig


@MODELS.register_module()
class ActivationQuantizer(nn.Module):
    """Quantizer of an activation tensor, with scales that are learned.

    The scale is learned as LSQ does (Esser et al., ICLR 2020), but as a
    logarithm. During learning, random elements stay float (QDrop, Wei et
    al., ICLR 2022). Before :meth:`fit`, or a checkpoint, sets a scale, the
    quantizer returns its input.

    Args:
        bits (int): Bit width, 2 to 8, or 16.
        symmetric (bool): If true, use signed integers and no zero point. By
            default integers are unsigned and have a zero point.
        learn_scale (bool): Whether reconstruction learns the scale.
        drop_prob (float): Fraction of elements that stay float during
            reconstruction, 0 to 1; 0.5 in the QDrop paper.
        observer (dict): Config of the observer that chooses the first scale
            and zero point; by default :class:`LpObserver`.
        heads (int): Number of scales. With 2 or more, each index of the
            third dimension from the end has its own, as the heads of
            attention; all share the zero point.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> quantizer = ActivationQuantizer(bits=4)
        >>> x = torch.randn(8, 16, 32, 32)
        >>> quantizer.fit(x)
        >>> len(quantizer(x).unique()) <= 16
        True
    """

    scale: Tensor
    zero_point: Tensor
    bits: Tensor
    #: Maximum number of elements that an observer examines.
    sample_size = 2**16
    #: Whether neighboring points of the grid have the same distance.
    uniform = True

    def __init__(
        self,
        bits: ActivationBits = 8,
        symmetric: bool = False,
        learn_scale: bool = True,
        drop_prob: Fraction = 0.25,
        observer: Optional[ObserverConfig] = None,
        heads: Count = 1,
    ) -> None:
        super().__init__()
        self.grid = Grid(bits, symmetric, signed=symmetric)
        self.heads = heads
        self.learn_scale = learn_scale
        self.drop_prob = drop_prob
        self.observer: Observer = TASK_UTILS.build(
            observer or dict(type='LpObserver')
        )
        self.log_scale: Optional[nn.Parameter] = None
        self.masks: Optional[MaskPool] = None
        self.active = False
        shape = (heads, 1, 1) if heads > 1 else ()
        self.register_buffer('scale', torch.full(shape, torch.nan))
        self.register_buffer('zero_point', torch.tensor(0))
        self.register_buffer('bits', torch.tensor(bits, dtype=torch.uint8))
        self.set_bits(bits)

    def set_bits(self, bits: int) -> None:
        """Change the bit width, before a scale is chosen.

        Args:
            bits (int): 2 to 8, or 16.
        """
        self.grid = replace(self.grid, bits=bits)
        self.bits.fill_(bits)
        # The zero point of 16 bits does not fit into as many.
        dtype = torch.int16 if bits <= 8 else torch.int32
        self.zero_point = self.zero_point.to(dtype)

    def rows(self, values: Tensor) -> Tensor:
        """Return activations with a row for each scale, R x K.

        Args:
            values (Tensor): Activations of any shape, with as many heads as
                there are scales.
        """
        values = values.detach()
        if self.heads > 1:
            values = values.movedim(-3, 0)
        return values.reshape(self.heads, -1)

    def sample(self, values: Tensor, part: int = 0, parts: int = 1) -> Tensor:
        """Return a random sample of activations, for :meth:`fit`.

        Args:
            values (Tensor): Activations of any shape.
            part (int): Index of the sample, 0 to ``parts`` - 1.
            parts (int): Number of samples that will be concatenated.

        Returns:
            Tensor: At most ``sample_size / parts`` elements, 1-dimensional,
            or a row for each head.
        """
        rows = self.rows(values)
        size = max(1, self.sample_size // (parts * self.heads))
        rows = rows[0] if self.heads == 1 else rows
        if rows.shape[-1] <= size:
            return rows
        # Every n-th element would come from the same few image columns.
        generator = torch.Generator().manual_seed(part)
        chosen = torch.randint(rows.shape[-1], (size,), generator=generator)
        return rows[..., chosen.to(values.device)]

    def sample_rows(self, values: Tensor) -> Tensor:
        """Return what :meth:`fit` is given with a row for each scale, R x K.

        Args:
            values (Tensor): Activations, or what :meth:`sample` returned.
        """
        if self.heads > 1 and values.dim() <= 2:
            return values.detach()
        return self.rows(values)

    @torch.no_grad()
    def fit(self, values: Tensor, observer: Optional[Observer] = None) -> None:
        """Choose scales and zero point, and quantize from now on.

        Args:
            values (Tensor): Finite activations of any shape, or what
                :meth:`sample` returned.
            observer (Observer, optional): Chooses in place of its own.
        """
        observer = observer or self.observer
        sample = self.sample_rows(values)
        scale, zero_point = observer(sample, self.grid)
        if self.heads > 1 and not self.grid.symmetric:
            # Runtimes multiply integers of one zero point only.
            zero_point = zero_point.float().median().expand(self.heads)
            grid = self.grid.at(int(zero_point[0]))
            scale, _ = observer(sample, grid)
        self.scale.copy_(scale.view(self.scale.shape))
        self.zero_point.copy_(zero_point[0])
        self.active = True

    def learn(self, masks: Optional[MaskPool] = None) -> None:
        """Begin to learn the scale.

        Args:
            masks (MaskPool, optional): Masks of the elements that stay
                float. Without it all elements are quantized.
        """
        self.log_scale = nn.Parameter(
            torch.zeros_like(self.scale), requires_grad=self.learn_scale
        )
        self.masks = masks

    def forward(self, x: Tensor) -> Tensor:
        """Quantize and dequantize activations.

        Args:
            x (Tensor): Activations of any shape.

        Returns:
            Tensor: Real values on the grid, in the shape of ``x``. In
            training mode, masked elements are those of ``x``.
        """
        if not self.active:
            return x
        log_scale, keep = torch.zeros_like(self.scale), None
        if self.log_scale is not None:
            log_scale = self.log_scale
            if self.training and self.masks is not None and self.drop_prob:
                keep = self.masks.cut(x.numel(), 1 - self.drop_prob)
        return self.on_grid(x, log_scale, keep)

    def on_grid(
        self, x: Tensor, log_scale: Tensor, keep: Optional[Tensor] = None
    ) -> Tensor:
        """Quantize and dequantize with scales changed by a factor.

        Args:
            x (Tensor): Activations of any shape.
            log_scale (Tensor): Logarithm of the factor of each scale.
            keep (Tensor, optional): A 1 for each element that is quantized,
                0 for others, in the order of memory; all by default.
        """
        return fake_quantize(
            x, log_scale, self.scale, self.zero_point, *self.grid.range, keep
        )

    @torch.no_grad()
    def freeze(self) -> None:
        """End learning and keep the learned scale."""
        if self.log_scale is not None:
            self.scale.mul_(self.log_scale.exp())
        self.forget()

    def forget(self) -> None:
        """End learning and return to the scale before it."""
        self.log_scale = self.masks = None

    def trainable(self) -> list[nn.Parameter]:
        """Return the logarithm of the scales, if they are learned."""
        if self.log_scale is None or not self.learn_scale:
            return []
        return [self.log_scale]

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *args: Any
    ) -> None:
        bits = state_dict.get(prefix + 'bits')
        if bits is not None and int(bits) > 8:
            self.set_bits(int(bits))  # A run may have chosen them.
        self.grid.check_bits(state_dict, prefix)
        self.grid.check_values(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.active = bool(self.scale.isfinite().all())

    def extra_repr(self) -> str:
        return f'{self.grid}, drop_prob={self.drop_prob}'


class MaskPool:
    """Pool of random bits that masks are cut from at random offsets.

    New random numbers for every element take more time than the convolution
    that uses them. A slice of a pool takes almost none.

    Args:
        generator (torch.Generator): Source of randomness, on the CPU.
        device (torch.device): Device of the masks.
        spare (int): Number of elements of the pool beyond the largest mask.
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
        #: By the probability of a one.
        self.pools: dict[float, Tensor] = {}

    def cut(self, size: int, prob: float) -> Tensor:
        """Return a random mask.

        Args:
            size (int): Number of elements.
            prob (float): Probability of a one, 0 to 1.

        Returns:
            Tensor: Ones and zeros in float32, 1-dimensional.
        """
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
        """Return a tensor with random elements of two tensors.

        Args:
            x (Tensor): Of any shape.
            y (Tensor): Of the same shape. It is overwritten.
            prob (float): Probability that an element is that of ``x``.

        Returns:
            Tensor: In the shape of ``x``.
        """
        mask = self.cut(x.numel(), prob)
        return from_flat(to_flat(y, x).lerp_(to_flat(x), mask), x)
