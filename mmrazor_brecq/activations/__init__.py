from .batched import (
    MAX_ELEMENTS_BACKWARD,
    MAX_ELEMENTS_FORWARD,
    CachedBatches,
    images_per_pass,
)
from .cached_tensor import CachedTensor, FreeableTensor
from .store import Store
from .stream import Stream

__all__ = [
    'CachedBatches',
    'CachedTensor',
    'FreeableTensor',
    'MAX_ELEMENTS_BACKWARD',
    'MAX_ELEMENTS_FORWARD',
    'Store',
    'Stream',
    'images_per_pass',
]
