from .batched import (
    MAX_ELEMENTS_BACKWARD,
    MAX_ELEMENTS_FORWARD,
    CachedBatches,
    images_per_pass,
)
from .store import CachedTensor, FreeableTensor, Store
from .stream import Stream

__all__ = [
    'MAX_ELEMENTS_BACKWARD',
    'CachedTensor',
    'MAX_ELEMENTS_FORWARD',
    'FreeableTensor',
    'CachedBatches',
    'Store',
    'Stream',
    'images_per_pass',
]
