from .affine import (
    dequantize,
    dequantize_rows,
    fake_quantize,
    integer_range,
    quantize,
)
from .fused import flat, fused, like, reuse_freed_memory
from .losses import lp_error, weighted_squared_error
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
    'lp_error',
    'quantize',
    'rectified_sigmoid',
    'relaxed_integers',
    'reuse_freed_memory',
    'rounding_penalty',
    'weighted_squared_error',
]
