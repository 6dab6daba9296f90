"""Quantizer on a logarithmic grid, for what a softmax puts out."""

from __future__ import annotations

from typing import Any, Optional

import torch
from torch import Tensor

from ..functional import from_flat, quantize_to_powers, to_flat
from ..registry import MODELS
from ..validation import ActivationBits, Count, Fraction
from .activation import ActivationQuantizer
from .observers import Observer

#: Points by which values halve, of which the best is taken.
PER_OCTAVE = (1, 2, 3, 4)
#: Largest points that are tried, as shares of the largest value.
LARGEST = 32


@MODELS.register_module()
class LogActivationQuantizer(ActivationQuantizer):
    """Quantizer with points at equal ratios, and zero.

    Most of what a softmax puts out is small, and some is near 1. With few
    bits a uniform grid makes all of the former zero. Here the points are
    ``scale * 2^(-q / per_octave)``; both factors minimize the squared error
    (with ``per_octave=1`` as in FQ-ViT, Lin et al., IJCAI 2022, with 2 as in
    RepQ-ViT, Li et al., ICCV 2023).

    No runtime computes with such integers, so a network with these
    quantizers cannot be exported.

    Args:
        bits (int): Bit width, 2 to 8.
        learn_scale (bool): Whether reconstruction learns the scale.
        drop_prob (float): Fraction of elements that stay float during
            reconstruction, 0 to 1.
        heads (int): Number of scales, see :class:`ActivationQuantizer`.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> quantizer = LogActivationQuantizer(bits=3)
        >>> quantizer.fit(torch.randn(8, 16, 16).mul(3).softmax(-1))
        >>> len(quantizer(torch.rand(1000)).unique()) <= 8
        True
    """

    per_octave: Tensor
    uniform = False

    def __init__(
        self,
        bits: ActivationBits = 8,
        learn_scale: bool = True,
        drop_prob: Fraction = 0.25,
        heads: Count = 1,
    ) -> None:
        super().__init__(
            bits, learn_scale=learn_scale, drop_prob=drop_prob, heads=heads
        )
        self.register_buffer('per_octave', torch.tensor(1, dtype=torch.uint8))

    @torch.no_grad()
    def fit(self, values: Tensor, observer: Optional[Observer] = None) -> None:
        """Choose the points that minimize the squared error.

        Args:
            values (Tensor): Finite activations of any shape, or what
                :meth:`sample` returned.
            observer (Observer, optional): Not used.

        Raises:
            ValueError: If a value is negative.
        """
        rows = self.sample_rows(values)
        if rows.min() < 0:
            raise ValueError(
                f'{type(self).__name__} is given {float(rows.min()):.4g}, '
                'expected no negative values: use it for '
                '`quantization.after_softmax` alone'
            )
        rows = rows.float()
        largest = rows.amax(1)
        largest = torch.where(largest > 0, largest, 1)
        levels = 2**self.grid.bits
        shares = torch.linspace(1 / LARGEST, 1, LARGEST, device=rows.device)
        tried = []
        for per_octave in torch.tensor(PER_OCTAVE, device=rows.device):
            errors = torch.stack(
                [
                    (
                        quantize_to_powers(
                            rows,
                            (share * largest)[:, None],
                            per_octave,
                            levels,
                        )
                        - rows
                    )
                    .square()
                    .sum(1)
                    for share in shares
                ]
            )
            least, chosen = errors.min(0)
            tried.append((float(least.sum()), per_octave, shares[chosen]))
        _, per_octave, share = min(tried, key=lambda found: found[0])
        self.per_octave.copy_(per_octave)
        self.scale.copy_((share * largest).view(self.scale.shape))
        self.zero_point.zero_()
        self.active = True

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
        scale = self.scale * log_scale.exp()
        levels = 2**self.grid.bits
        found = quantize_to_powers(x, scale, self.per_octave, levels)
        found = found.to(x.dtype)
        if keep is None:
            return found
        chosen = torch.where(keep > 0, to_flat(found, x), to_flat(x))
        return from_flat(chosen, x)

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *args: Any
    ) -> None:
        per_octave = state_dict.get(f'{prefix}per_octave')
        if per_octave is not None and int(per_octave) not in PER_OCTAVE:
            raise ValueError(
                f'{prefix}per_octave in the checkpoint is {int(per_octave)}, '
                f'expected one of {PER_OCTAVE}: get the file anew'
            )
        super()._load_from_state_dict(state_dict, prefix, *args)
