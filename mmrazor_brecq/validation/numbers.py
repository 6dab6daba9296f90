"""Declare the kinds of numbers that settings have."""

from __future__ import annotations

import argparse
import ast
from typing import Annotated, Any, Callable, Literal, Union

from pydantic import Field

from .typed import make_validator
from .words import Hint, KeyPath, describe, show

#: A number of things, at least one.
Count = Annotated[int, Field(ge=1, le=10**9)]
#: A number of things, or 0.
Natural = Annotated[int, Field(ge=0, le=10**9)]
#: A number of calibration images: one to learn from, one to validate on.
ImageCount = Annotated[
    int,
    Field(
        ge=2,
        le=10**9,
        description='2 or more, a whole number: one image to learn from and '
        'one to validate on',
    ),
]
#: Batch size of an exported network.
Batch = Union[Literal['dynamic'], Count]
#: Bit width of integers.
Bits = Annotated[int, Field(ge=2, le=8)]
#: Bit width of integers, or 32 for what stays in float.
BitsOrFloat = Union[Bits, Literal[32]]
#: Bit width of activations: 16 for the few whose range 8 bits do not resolve.
ActivationBits = Union[Bits, Literal[16]]
#: Bit width of activations, or 32 for one that stays in float.
ActivationBitsOrFloat = Union[Bits, Literal[16, 32]]
#: A seed, in the range that numpy and torch share.
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
#: A fraction, or a probability.
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
#: An exponent of weights: 0 makes all of them equal.
Exponent = Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)]
#: A learning rate.
Rate = Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False)]
#: A weight or a threshold.
Amount = Annotated[float, Field(ge=0, le=10**6, allow_inf_nan=False)]
#: A divisor, or an exponent that must not be 0.
Positive = Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)]


def option(hint: Hint) -> Callable[[str], Any]:
    """Return the ``type`` of a command line option.

    Args:
        hint (type): The type of its value, as it would be annotated.

    Returns:
        callable: Reads a text, and refuses it with argparse's error.
    """
    validator = make_validator(hint)

    def read(text: str) -> Any:
        try:
            value = ast.literal_eval(text)
        except (SyntaxError, ValueError):
            value = text
        try:
            return validator(value, KeyPath())
        except ValueError as error:
            raise argparse.ArgumentTypeError(
                f'{show(text)}, expected {describe(hint)}'
            ) from error

    return read
