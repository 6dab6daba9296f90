"""Quantized layers, and products of activations."""

from .kinds import kind_of
from .mixed_in import MixedIn, mix_in
from .product import (
    TAKEN,
    MatrixProduct,
    ProductMode,
    ProductOwner,
    Taken,
    is_layer,
    products,
    quantize_product,
)
from .quant_layers import (
    QuantLayer,
    activation_quantizers,
    is_quantizable,
    packed_bytes,
    quant_layers,
    quantize_layer,
)

__all__ = [
    'TAKEN',
    'MatrixProduct',
    'MixedIn',
    'ProductMode',
    'ProductOwner',
    'QuantLayer',
    'Taken',
    'activation_quantizers',
    'is_layer',
    'is_quantizable',
    'kind_of',
    'mix_in',
    'packed_bytes',
    'products',
    'quant_layers',
    'quantize_layer',
    'quantize_product',
]
