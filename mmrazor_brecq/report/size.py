"""Count the bytes that weights take."""

from __future__ import annotations

from torch import nn

from ..layers import packed_bytes, quant_layers


def weight_bytes(model: nn.Module) -> dict[str, int]:
    """Return the bytes of all weights and biases, in float and quantized.

    An element of a quantized weight counts as many bits as it has, and each
    scale 5 bytes together with its zero point. All other elements count 4
    bytes.

    Args:
        model (nn.Module): A prepared network.

    Returns:
        dict[str, int]: ``float`` and ``quantized``.
    """
    layers = quant_layers(model).values()
    elements = sum(p.numel() for p in model.parameters())
    in_layers = sum(layer.stored_weight.numel() for layer in layers)
    packed = sum(
        packed_bytes(
            layer.stored_weight.numel(),
            layer.weight_quantizer.scale.numel(),
            layer.weight_quantizer.grid.bits,
        )
        for layer in layers
    )
    return dict(
        float=4 * elements, quantized=4 * (elements - in_layers) + packed
    )
