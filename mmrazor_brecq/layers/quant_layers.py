"""Quantized layers: one mixin for convolutions and linear layers.

A layer is quantized by changing the class of the object. Its name, hooks and
hyper-parameters stay, and so does what a subclass of ``nn.Conv2d`` does to
its input and weight, such as mmcv's adaptive padding.
"""

from __future__ import annotations

import math
from typing import Any, Optional, Union

import torch
from torch import Tensor, nn

from ..quantizers import ActivationQuantizer, WeightQuantizer
from .mixed_in import MixedIn, mix_in

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

#: Attribute with the ``forward`` that was set on the layer object itself.
FLOAT_FORWARD = 'float_forward'

#: Attribute with the quantized weight while the layer runs.
WEIGHT_IN_USE = 'weight_in_use'


class QuantLayer(MixedIn):
    """Mixin of layers with a quantized weight and a quantized input.

    Attributes:
        weight_quantizer (WeightQuantizer): Returns real weights on the grid,
            from real ones before the layer is frozen and from integers
            afterwards.
        input_quantizer (ActivationQuantizer | nn.Identity): Quantizes the
            input. It is the identity if the unit's door has done so.
        mean_input (Tensor, optional): What each weight is multiplied with on
            average, in the shape of the weight. Until the layer is frozen,
            the bias makes up for what rounded weights do to it.
    """

    prefix = 'Quant'
    weight_quantizer: WeightQuantizer
    input_quantizer: Union[ActivationQuantizer, nn.Identity]
    mean_input: Optional[Tensor] = None

    @property
    def weight(self) -> Tensor:
        """Return the real weights on the grid that the layer computes with.

        Any code that reads ``weight`` gets these, such as the forward pass
        of the float layer.
        """
        if WEIGHT_IN_USE in vars(self):
            return vars(self)[WEIGHT_IN_USE]
        return self._quantized_weight()

    def _quantized_weight(self) -> Tensor:
        try:
            return self.weight_quantizer(self.stored_weight)
        except AttributeError as error:
            # After an AttributeError nn.Module would look for a parameter of
            # this name, and return the integers.
            raise RuntimeError(f'The quantized weight: {error}') from error

    @property
    def stored_weight(self) -> nn.Parameter:
        """Return the parameter: real before freezing, ``int8`` after it."""
        return self._parameters['weight']  # type: ignore[return-value]

    @property
    def bias(self) -> Optional[Tensor]:
        """Return the bias that the layer computes with, if it has one."""
        bias, mean = self._parameters['bias'], self.mean_input
        if bias is None or mean is None:
            return bias
        return bias - self._mean_error(self.stored_weight, mean)

    def _mean_error(self, float_weight: Tensor, mean: Tensor) -> Tensor:
        """Return what rounded weights add to the mean of each channel."""
        error = (self.weight - float_weight) * mean
        return error.flatten(1).sum(1)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Run the float layer with quantized weight and input.

        The input is the first argument, or else the first tensor among the
        keyword arguments.
        """
        if args:
            args = self.input_quantizer(args[0]), *args[1:]
        else:
            name = next(k for k, v in kwargs.items() if isinstance(v, Tensor))
            kwargs[name] = self.input_quantizer(kwargs[name])
        # The float layer's code may read the weight several times: it is
        # quantized once for each call.
        vars(self)[WEIGHT_IN_USE] = self._quantized_weight()
        try:
            if FLOAT_FORWARD in vars(self):
                return vars(self)[FLOAT_FORWARD](*args, **kwargs)
            return super().forward(*args, **kwargs)
        finally:
            del vars(self)[WEIGHT_IN_USE]

    @property
    def frozen(self) -> bool:
        """Return whether the weights are integers."""
        return not self.stored_weight.is_floating_point()

    def freeze(self) -> None:
        """Replace the weights by their integers."""
        if self.frozen:
            return
        weight, mean = self.stored_weight, self.mean_input
        bias, self.mean_input = self._parameters['bias'], None
        self._store(self.weight_quantizer.freeze(weight))
        if bias is not None and mean is not None:
            bias.data = bias.data - self._mean_error(weight, mean).detach()

    def thaw(self, float_weight: Tensor) -> None:
        """Replace the integers by real weights, to learn them again.

        Args:
            float_weight (Tensor): Weight of the float layer. The real
                weights are as close to it as their integers allow.
        """
        self._store(
            self.weight_quantizer.thaw(self.stored_weight, float_weight)
        )

    def _store(self, weight: Tensor) -> None:
        self._parameters['weight'] = nn.Parameter(weight, requires_grad=False)

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *args: Any
    ) -> None:
        weight = state_dict.get(prefix + 'weight')
        if weight is not None and not weight.is_floating_point():
            self._check_frozen(state_dict, prefix, weight)
            # It keeps the layer's order of memory, whatever the file has.
            self._store(
                torch.empty_like(self.stored_weight, dtype=weight.dtype)
            )
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _check_frozen(
        self, state_dict: dict[str, Tensor], prefix: str, weight: Tensor
    ) -> None:
        """Refuse frozen weights that do not stand for finite numbers."""
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


def is_quantizable(module: Optional[nn.Module]) -> bool:
    """Return whether a module is a Conv1d, Conv2d, Conv3d or Linear."""
    return isinstance(module, (nn.Linear, *CONVOLUTIONS))


def quantize_layer(
    layer: nn.Module,
    weight_quantizer: WeightQuantizer,
    input_quantizer: Optional[ActivationQuantizer],
) -> None:
    """Change a float layer into a quantized one, in place.

    Args:
        layer (nn.Module): A convolution or a linear layer.
        weight_quantizer (WeightQuantizer): Quantizer of its weight.
        input_quantizer (ActivationQuantizer, optional): Quantizer of its
            input.

    Raises:
        TypeError: If the layer is of another kind, such as a transposed
            convolution.
    """
    if not is_quantizable(layer):
        raise TypeError(
            f'{type(layer).__name__} cannot be quantized, '
            'expected Conv1d, Conv2d, Conv3d or Linear'
        )
    weight: Any = layer.weight
    if weight.stride(0) != weight[0].numel():
        # The quantizer needs the elements of each channel side by side.
        weight.data = weight.data.contiguous()
    if 'forward' in vars(layer):
        vars(layer)[FLOAT_FORWARD] = vars(layer).pop('forward')
    mix_in(QuantLayer, layer)
    layer.weight_quantizer = weight_quantizer.to(weight.device)
    layer.input_quantizer = (input_quantizer or nn.Identity()).to(
        weight.device
    )


def quant_layers(module: nn.Module, prefix: str = '') -> dict[str, QuantLayer]:
    """Return all quantized layers of a module by name.

    Args:
        module (nn.Module): A network or a part of one.
        prefix (str): Name of the module, which the names begin with.
    """
    return {
        name: layer
        for name, layer in module.named_modules(prefix=prefix)
        if isinstance(layer, QuantLayer)
    }


def activation_quantizers(module: nn.Module) -> list[ActivationQuantizer]:
    """Return all activation quantizers of a module."""
    return [m for m in module.modules() if isinstance(m, ActivationQuantizer)]


def packed_bytes(elements: int, scales: int, bits: int) -> int:
    """Return the bytes of a quantized weight.

    Args:
        elements (int): Number of elements of the weight.
        scales (int): Number of scales. Each takes 5 bytes, with its zero
            point.
        bits (int): Bit width, 2 to 8.
    """
    return math.ceil(elements * bits / 8) + 5 * scales
