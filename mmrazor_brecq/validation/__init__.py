"""What users type is judged here, by declared types, before work begins.

Annotations declare: those of a constructor or function that
:func:`validated` wraps, as it is with every class of our registries. This
package knows no other of ours.
"""

from .config import Config
from .declared import validated
from .numbers import (
    Amount,
    Batch,
    Bits,
    Count,
    Exponent,
    ImageCount,
    Natural,
    Positive,
    Rate,
    Seed,
    Share,
    option,
)
from .typed import validate
from .words import KeyPath, nearest

__all__ = [
    'Amount',
    'Batch',
    'Bits',
    'Config',
    'Count',
    'Exponent',
    'ImageCount',
    'Natural',
    'KeyPath',
    'Positive',
    'Rate',
    'Seed',
    'Share',
    'validate',
    'nearest',
    'option',
    'validated',
]
