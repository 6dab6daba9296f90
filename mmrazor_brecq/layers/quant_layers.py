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

#: Where a layer keeps the ``forward`` that somebody set on the object itself.
OWN_FORWARD = 'float_forward'

#: Where its quantized weight is while it runs.
IN_USE = 'weight_in_use'


class QuantLayer(nn.Module):
    """What quantized layers have in common.

    Attributes:
        weight_quantizer: Gives real weights on the grid, from real ones
            while the layer learns and from integers once it is frozen.
        input_quantizer: Quantizes the input, or ``nn.Identity`` where the
            unit's door has done so.
    """

    weight_quantizer: WeightQuantizer
    input_quantizer: nn.Module

    @property
    def weight(self) -> Tensor:
        """Real weights as the layer computes with them, on the grid.

        Whoever reads a layer's ``weight``, the float layer's own forward
        pass or any other code, gets these.
        """
        if IN_USE in vars(self):
            return vars(self)[IN_USE]
        try:
            return self.weight_quantizer(self.stored_weight)
        except AttributeError as error:
            # Else nn.Module would look on, and find the integers.
            raise RuntimeError(f'The quantized weight: {error}') from error

    @property
    def stored_weight(self) -> nn.Parameter:
        """The parameter: real until the layer is frozen, then ``int8``."""
        return self._parameters['weight']  # type: ignore[return-value]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the float layer does, with quantized weight and input."""
        if args:
            args = self.input_quantizer(args[0]), *args[1:]
        else:
            name = next(k for k, v in kwargs.items() if isinstance(v, Tensor))
            kwargs[name] = self.input_quantizer(kwargs[name])
        # Once a call, however often the float layer's code reads it.
        vars(self)[IN_USE] = self.weight
        try:
            if OWN_FORWARD in vars(self):
                return vars(self)[OWN_FORWARD](*args, **kwargs)
            return super().forward(*args, **kwargs)
        finally:
            del vars(self)[IN_USE]

    @property
    def frozen(self) -> bool:
        """Whether the weights are integers."""
        return not self.stored_weight.is_floating_point()

    def freeze(self) -> None:
        """Turn the weights into integers, for good."""
        if not self.frozen:
            self._store(self.weight_quantizer.freeze(self.stored_weight))

    def thaw(self, near: Tensor) -> None:
        """Make real weights of the integers, for them to be learned anew.

        Args:
            near (Tensor): The float layer's weight.
        """
        self._store(self.weight_quantizer.thaw(self.stored_weight, near))

    def _store(self, weight: Tensor) -> None:
        self._parameters['weight'] = nn.Parameter(weight, requires_grad=False)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle by the float layer's class, for this one has no name in a
        module: it is made where it is needed.
        """
        reduced: Any = super().__reduce_ex__(protocol)
        return (_new_layer, (type(self).__bases__[1],), *reduced[2:])

    def _load_from_state_dict(
        self, state_dict: dict, prefix: str, *args: Any
    ) -> None:
        weight = state_dict.get(prefix + 'weight')
        if weight is not None and not weight.is_floating_point():
            self._check_frozen(state_dict, prefix, weight)
            # In its own order of memory, whatever that of the file is.
            self._store(
                torch.empty_like(self.stored_weight, dtype=weight.dtype)
            )
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _check_frozen(
        self, state_dict: dict, prefix: str, weight: Tensor
    ) -> None:
        """Refuse frozen weights that stand for no finite numbers."""
        grid = self.weight_quantizer.grid
        grid.check_bits(state_dict, f'{prefix}weight_quantizer.')
        grid.check_integers(weight, prefix + 'weight')
        for key in ('bias', 'weight_quantizer.scale'):
            value = state_dict.get(prefix + key)
            if value is not None and not value.isfinite().all():
                raise ValueError(
                    f'{prefix}{key} in the checkpoint holds NaN or infinity, '
                    'expected finite numbers: get the file anew, or '
                    'quantize again'
                )


@cache
def _quant_class(cls: Any) -> Any:
    return type(f'Quant{cls.__name__}', (QuantLayer, cls), {})


def _new_layer(cls: Any) -> Any:
    """An empty layer that quantizes what a ``cls`` does, for pickle."""
    quant_class = _quant_class(cls)
    return quant_class.__new__(quant_class)


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
    device = layer.weight.device
    if 'forward' in vars(layer):
        vars(layer)[OWN_FORWARD] = vars(layer).pop('forward')
    cls: Any = type(layer)
    layer.__class__ = _quant_class(cls)
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
