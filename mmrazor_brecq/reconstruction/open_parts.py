"""Layers and quantizers of a unit that are not frozen yet.

A layer that two units share is frozen with the first of them.
"""

from __future__ import annotations

from typing import Union

from torch import nn

from ..layers import QuantLayer, activation_quantizers, quant_layers
from ..quantizers import ActivationQuantizer, WeightQuantizer


def open_layers(module: nn.Module) -> list[QuantLayer]:
    """Return the quantized layers of a module that are not frozen."""
    return [m for m in quant_layers(module).values() if not m.frozen]


def open_activations(module: nn.Module) -> list[ActivationQuantizer]:
    """Return the activation quantizers, without those of frozen layers."""
    frozen = {
        m.input_quantizer for m in quant_layers(module).values() if m.frozen
    }
    return [q for q in activation_quantizers(module) if q not in frozen]


def open_quantizers(
    module: nn.Module,
) -> list[Union[WeightQuantizer, ActivationQuantizer]]:
    """Return the weight and activation quantizers that are not frozen."""
    weights = [layer.weight_quantizer for layer in open_layers(module)]
    return [*weights, *open_activations(module)]
