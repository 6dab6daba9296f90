"""Layers whose weight and input are quantized: one mixin for all of them.

A layer is swapped by giving it another class: the object, its name, its
hooks and its hyper-parameters stay, and so does what a subclass of
``nn.Conv2d`` does to its input and weight (such as mmcv's adaptive padding).
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any, Optional

import torch
from torch import Tensor, nn

from ..quantizers import ActivationQuantizer, WeightQuantizer

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class QuantLayer(nn.Module):
    """What quantized layers have in common.

    Attributes:
        weight: Real weights while the layer learns, ``int8`` once it is
            frozen.
        weight_quantizer: Gives real weights on the grid from either.
        input_quantizer: Quantizes the input, or ``nn.Identity`` where the
            unit's door has done so.
    """

    weight: Tensor
    weight_quantizer: WeightQuantizer
    input_quantizer: nn.Module

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """What the float layer does, with quantized weight and input."""
        x = self.input_quantizer(x)
        # An attribute hides the parameter of that name: so the float
        # layer's own code finds the quantized weight, whatever it does.
        self.__dict__['weight'] = self.weight_quantizer(self.weight)
        try:
            return super().forward(x, *args, **kwargs)
        finally:
            del self.__dict__['weight']

    @property
    def frozen(self) -> bool:
        """Whether the weights are integers."""
        return not self.weight.is_floating_point()

    def freeze(self) -> None:
        """Turn the weights into integers, for good."""
        if not self.frozen:
            self._set_integers(self.weight_quantizer.freeze(self.weight))

    def thaw(self, near: Tensor) -> None:
        """Make real weights of the integers, for them to be learned anew.

        Args:
            near (Tensor): The float layer's weight.
        """
        weight = self.weight_quantizer.thaw(self.weight, near)
        self.weight = nn.Parameter(weight, requires_grad=False)

    def _set_integers(self, integers: Tensor) -> None:
        self.weight = nn.Parameter(integers, requires_grad=False)

    def _load_from_state_dict(
        self, state_dict: dict, prefix: str, *args: Any
    ) -> None:
        weight = state_dict.get(prefix + 'weight')
        if weight is not None and not weight.is_floating_point():
            # In its own order of memory, whatever that of the file is.
            self._set_integers(
                torch.empty_like(self.weight, dtype=weight.dtype)
            )
        super()._load_from_state_dict(state_dict, prefix, *args)


@cache
def _quant_class(cls: Any) -> Any:
    return type(f'Quant{cls.__name__}', (QuantLayer, cls), {})


def is_quantizable(module: nn.Module) -> bool:
    """Whether it is a convolution (1d, 2d, 3d) or a linear layer."""
    return isinstance(module, (nn.Linear, *CONVOLUTIONS))


def quantize_layer(
    layer: Any,
    weight_quantizer: WeightQuantizer,
    input_quantizer: Optional[ActivationQuantizer],
) -> None:
    """Turn a float layer into a quantized one, where it stands.

    Args:
        layer (nn.Module): A convolution or a linear layer.
        weight_quantizer (WeightQuantizer): For its weight.
        input_quantizer (ActivationQuantizer, optional): For its input.

    Raises:
        TypeError: If it is of another kind, such as a transposed
            convolution.
    """
    if not is_quantizable(layer):
        raise TypeError(
            f'{type(layer).__name__} cannot be quantized, '
            'expected Conv1d, Conv2d, Conv3d or Linear'
        )
    if layer.weight.stride(0) != layer.weight[0].numel():
        # The quantizer takes the elements of one channel for neighbours.
        layer.weight.data = layer.weight.data.contiguous()
    cls: Any = type(layer)
    layer.__class__ = _quant_class(cls)
    device = layer.weight.device
    layer.weight_quantizer = weight_quantizer.to(device)
    layer.input_quantizer = (input_quantizer or nn.Identity()).to(device)


def quant_layers(module: nn.Module, prefix: str = '') -> dict[str, QuantLayer]:
    """All quantized layers in ``module``, by name."""
    return {
        name: layer
        for name, layer in module.named_modules(prefix=prefix)
        if isinstance(layer, QuantLayer)
    }


def activation_quantizers(module: nn.Module) -> list[ActivationQuantizer]:
    """All activation quantizers in ``module``."""
    return [m for m in module.modules() if isinstance(m, ActivationQuantizer)]


def packed_bytes(parameters: int, steps: int, bits: int) -> int:
    """Bytes of a quantized weight.

    Args:
        parameters (int): Numbers in it, of as many bits as they have.
        steps (int): Steps, of 5 bytes each together with the zero point.
        bits (int): Width.
    """
    return math.ceil(parameters * bits / 8) + 5 * steps
