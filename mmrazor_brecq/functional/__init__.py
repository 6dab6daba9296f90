from .affine import dequantize, fake_quantize, integer_range, quantize
from .losses import kl_to_teacher, lp_error, weighted_squared_error
from .relaxation import (annealed_beta, inverse_rectified_sigmoid,
                         rectified_sigmoid, rounding_penalty)

__all__ = [
    'annealed_beta', 'dequantize', 'fake_quantize', 'integer_range',
    'inverse_rectified_sigmoid', 'kl_to_teacher', 'lp_error', 'quantize',
    'rectified_sigmoid', 'rounding_penalty', 'weighted_squared_error'
]
