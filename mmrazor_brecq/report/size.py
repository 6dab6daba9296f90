"""How many bytes the weights take."""

from __future__ import annotations

from torch import nn

from ..layers import packed_bytes, quant_layers


def weight_bytes(model: nn.Module) -> dict[str, int]:
    """Bytes of all weights and biases, in float and quantized.

    Quantized weights count as many bits as they have, and 5 bytes for
    each step and its zero point; all else is 4 bytes a number.

    Args:
        model (nn.Module): A prepared network.

    Returns:
        dict[str, int]: ``float`` and ``quantized``.
    """
    layers = quant_layers(model).values()
    numbers = sum(p.numel() for p in model.parameters())
    own = sum(layer.stored_weight.numel() for layer in layers)
    packed = sum(
        packed_bytes(
            layer.stored_weight.numel(),
            layer.weight_quantizer.scale.numel(),
            layer.weight_quantizer.grid.bits,
        )
        for layer in layers
    )
    return dict(float=4 * numbers, quantized=4 * (numbers - own) + packed)
