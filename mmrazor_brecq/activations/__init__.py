from .batched import AND_BACK, FORWARD, Rows, at_once
from .store import Column, Loan, Store
from .stream import Stream

__all__ = [
    'AND_BACK',
    'Column',
    'FORWARD',
    'Loan',
    'Rows',
    'Store',
    'Stream',
    'at_once',
]
