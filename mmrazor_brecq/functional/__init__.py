from .affine import (
    dequantize,
    dequantize_rows,
    integer_range,
    quantize,
    rounding_error,
)
from .extra_state import is_extra, pack_extra, unpack_extra
from .histogram import Histogram, histogram
from .layout import (
    from_flat,
    from_rows,
    in_order_of,
    memory_order,
    to_flat,
    to_rows,
)
from .logarithmic import quantize_to_powers
from .losses import weighted_squared_error
from .lsq import fake_quantize
from .modes import (
    in_grad_mode,
    make_tensors_normal,
    preserve_random_state,
    to_normal_tensor,
)
from .nested import (
    Nested,
    at_least_float32,
    flatten,
    leaves,
    map_tensors,
    tensors,
)
from .packing import pack_bits, unpack_bits
from .relaxation import (
    FusedPenalty,
    annealed_beta,
    inverse_rectified_sigmoid,
    rectified_sigmoid,
    relaxed_rows,
    rounding_penalty,
)

__all__ = [
    'FusedPenalty',
    'Histogram',
    'Nested',
    'annealed_beta',
    'at_least_float32',
    'dequantize',
    'dequantize_rows',
    'fake_quantize',
    'flatten',
    'from_flat',
    'from_rows',
    'histogram',
    'in_grad_mode',
    'in_order_of',
    'integer_range',
    'inverse_rectified_sigmoid',
    'is_extra',
    'leaves',
    'make_tensors_normal',
    'map_tensors',
    'memory_order',
    'pack_bits',
    'pack_extra',
    'preserve_random_state',
    'quantize',
    'quantize_to_powers',
    'rectified_sigmoid',
    'relaxed_rows',
    'rounding_error',
    'rounding_penalty',
    'tensors',
    'to_flat',
    'to_normal_tensor',
    'to_rows',
    'unpack_bits',
    'unpack_extra',
    'weighted_squared_error',
]
