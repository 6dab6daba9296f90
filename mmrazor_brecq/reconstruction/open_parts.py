"""The parts of a unit that no unit before it has frozen."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..layers import QuantLayer, activation_quantizers, quant_layers
from ..quantizers import ActivationQuantizer


def open_layers(module: nn.Module) -> list[QuantLayer]:
    """Return the layers that no unit before this one has frozen."""
    return [m for m in quant_layers(module).values() if not m.frozen]


def open_activations(module: nn.Module) -> list[ActivationQuantizer]:
    """Return the activation quantizers but those of frozen layers."""
    closed = {
        m.input_quantizer for m in quant_layers(module).values() if m.frozen
    }
    return [q for q in activation_quantizers(module) if q not in closed]


def open_quantizers(module: nn.Module) -> list[Any]:
    """Return the quantizers of weights and activations but frozen ones."""
    weights = [layer.weight_quantizer for layer in open_layers(module)]
    return weights + open_activations(module)
