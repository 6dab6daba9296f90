from .batched import AND_BACK, FORWARD, CachedBatches, at_once
from .store import Column, Loan, Store
from .stream import Stream

__all__ = [
    'AND_BACK',
    'Column',
    'FORWARD',
    'Loan',
    'CachedBatches',
    'Store',
    'Stream',
    'at_once',
]
