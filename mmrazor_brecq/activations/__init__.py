from .batched import (
    MAX_ELEMENTS_BACKWARD,
    MAX_ELEMENTS_FORWARD,
    CachedBatches,
    images_per_pass,
)
from .cached_tensor import CachedTensor, FreeableTensor
from .samples import CachedSamples, with_samples
from .store import Store
from .stream import Stream

__all__ = [
    'CachedBatches',
    'CachedSamples',
    'CachedTensor',
    'FreeableTensor',
    'MAX_ELEMENTS_BACKWARD',
    'MAX_ELEMENTS_FORWARD',
    'Store',
    'Stream',
    'images_per_pass',
    'with_samples',
]
