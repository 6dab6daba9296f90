from .affine import (
    dequantize,
    dequantize_rows,
    fake_quantize,
    integer_range,
    quantize,
    rounding_error,
)
from .fused import flat, fused, like, memory_order, reuse_freed_memory
from .losses import weighted_squared_error
from .packing import pack_bits, unpack_bits
from .relaxation import (
    annealed_beta,
    inverse_rectified_sigmoid,
    rectified_sigmoid,
    relaxed_integers,
    rounding_penalty,
)

__all__ = [
    'annealed_beta',
    'dequantize',
    'dequantize_rows',
    'fake_quantize',
    'flat',
    'fused',
    'integer_range',
    'inverse_rectified_sigmoid',
    'like',
    'memory_order',
    'pack_bits',
    'quantize',
    'rectified_sigmoid',
    'relaxed_integers',
    'reuse_freed_memory',
    'rounding_error',
    'rounding_penalty',
    'unpack_bits',
    'weighted_squared_error',
]
