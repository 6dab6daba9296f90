"""Validate what users give, by declared types, before work begins.

The types are the annotations of constructors and functions that
:func:`validated` wraps. Every class in a registry of this package is
wrapped.
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
