"""Quantized layers."""

from .quant_layers import (
    QuantLayer,
    activation_quantizers,
    is_quantizable,
    packed_bytes,
    quant_layers,
    quantize_layer,
)

__all__ = [
    'QuantLayer',
    'activation_quantizers',
    'is_quantizable',
    'packed_bytes',
    'quant_layers',
    'quantize_layer',
]
