from .affine import (
    dequantize,
    dequantize_rows,
    fake_quantize,
    integer_range,
    quantize,
    rounding_error,
)
from .kernel import Kernel
from .losses import weighted_squared_error
from .memory import (
    flat,
    from_rows,
    give_back_freed_memory,
    in_order_of,
    like,
    memory_order,
    reuse_freed_memory,
    rows,
)
from .modes import in_grad_mode, make_ordinary, ordinary, own_draws
from .nested import flatten, leaves, map_tensors, tensors
from .packing import pack_bits, unpack_bits
from .plain import is_extra, pack_extra, unpack_extra
from .relaxation import (
    annealed_beta,
    inverse_rectified_sigmoid,
    rectified_sigmoid,
    relaxed_rows,
)

__all__ = [
    'Kernel',
    'annealed_beta',
    'dequantize',
    'dequantize_rows',
    'fake_quantize',
    'flat',
    'flatten',
    'from_rows',
    'give_back_freed_memory',
    'in_grad_mode',
    'in_order_of',
    'integer_range',
    'is_extra',
    'inverse_rectified_sigmoid',
    'leaves',
    'like',
    'make_ordinary',
    'map_tensors',
    'memory_order',
    'ordinary',
    'own_draws',
    'pack_bits',
    'pack_extra',
    'quantize',
    'rectified_sigmoid',
    'relaxed_rows',
    'reuse_freed_memory',
    'rounding_error',
    'rows',
    'tensors',
    'unpack_bits',
    'unpack_extra',
    'weighted_squared_error',
]
