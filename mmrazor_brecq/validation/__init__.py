"""Validate what users give, by declared types, before work begins.

The types are the annotations of constructors and functions that
:func:`validated` wraps. Every class in a registry of this package is
wrapped.
"""

from .config import Config
from .declared import validated
from .numbers import (
    ActivationBits,
    ActivationBitsOrFloat,
    Amount,
    Batch,
    Bits,
    BitsOrFloat,
    Count,
    Exponent,
    Fraction,
    ImageCount,
    Natural,
    Positive,
    Rate,
    Seed,
    option,
)
from .typed import validate
from .words import KeyPath, did_you_mean

__all__ = [
    'ActivationBits',
    'ActivationBitsOrFloat',
    'Amount',
    'Batch',
    'Bits',
    'BitsOrFloat',
    'Config',
    'Count',
    'Exponent',
    'Fraction',
    'ImageCount',
    'KeyPath',
    'Natural',
    'Positive',
    'Rate',
    'Seed',
    'did_you_mean',
    'option',
    'validate',
    'validated',
]
