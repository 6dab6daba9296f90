"""Make the integers of a quantized network learn again, all together."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Optional, cast

from torch import nn

from ..layers import activation_quantizers, quant_layers


@dataclass
class OpenParameters:
    """Parameters of a quantized network that learn, by kind.

    Attributes:
        weights (list[nn.Parameter]): Positions of the weights: weights over
            their scale.
        weight_scales (list[nn.Parameter]): Logarithms of weight scales.
        activation_scales (list[nn.Parameter]): Logarithms of activation
            scales.
        biases (list[nn.Parameter]): Biases of the layers.
    """

    weights: list[nn.Parameter] = field(default_factory=list)
    weight_scales: list[nn.Parameter] = field(default_factory=list)
    activation_scales: list[nn.Parameter] = field(default_factory=list)
    biases: list[nn.Parameter] = field(default_factory=list)


def reopen(
    network: nn.Module, teacher: Optional[nn.Module] = None
) -> OpenParameters:
    """Replace integers by real weights whose gradient passes rounding.

    Activation scales of 8 bits stay as they are: their error is small, and
    one for the images would need the backward pass of the first layer, a
    tenth of the time of an iteration.

    Args:
        network (nn.Module): A quantized network, with all layers frozen.
        teacher (nn.Module, optional): The folded float network. Real weights
            begin as near to its own as their integers allow; without it,
            they begin at the integers.

    Returns:
        OpenParameters: What learns from now on, until :func:`close`.
    """
    found = OpenParameters()
    for name, layer in quant_layers(network).items():
        quantizer = layer.weight_quantizer
        layer.thaw(
            layer.weight
            if teacher is None
            else teacher.get_parameter(f'{name}.weight')
        )
        quantizer.learn(layer.stored_weight, dict(type='StraightThrough'))
        found.weights += quantizer.trainable()
        if quantizer.log_scale is not None:
            found.weight_scales.append(quantizer.log_scale)
        if layer.bias is not None:
            bias = cast(nn.Parameter, layer.bias)
            bias.requires_grad_()
            found.biases.append(bias)
    for activation in activation_quantizers(network):
        if activation.active and activation.grid.bits < 8:
            activation.learn()
            found.activation_scales += activation.trainable()
    return found


def close(network: nn.Module) -> None:
    """Replace the real weights of a network by integers again."""
    for quantizer in activation_quantizers(network):
        quantizer.freeze()
    for layer in quant_layers(network).values():
        layer.freeze()
    network.requires_grad_(False)
