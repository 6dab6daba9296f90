"""Kinds of numbers that settings are declared as."""

from __future__ import annotations

import argparse
import ast
from typing import Annotated, Any, Callable, Literal, Union

from pydantic import Field

from .typed import compiled
from .words import KeyPath, describe, show

#: How many of something there are.
Count = Annotated[int, Field(ge=1, le=10**9)]
#: Likewise, or none.
Natural = Annotated[int, Field(ge=0, le=10**9)]
#: How many calibration images: one to learn from, one to judge by.
ImageCount = Annotated[
    int,
    Field(
        ge=2,
        le=10**9,
        description='2 or more, a whole number: one to learn from and one '
        'to judge by',
    ),
]
#: How many images a network takes at a time.
Batch = Union[Literal['dynamic'], Count]
#: A bit width of integers.
Bits = Annotated[int, Field(ge=2, le=8)]
#: A seed, as numpy and torch both take it.
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
#: A part of a whole, or a probability.
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
#: An exponent of weights: 0 makes all of them alike.
Exponent = Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)]
#: A learning rate.
Rate = Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False)]
#: A weight or a threshold.
Amount = Annotated[float, Field(ge=0, le=10**6, allow_inf_nan=False)]
#: What is divided by, or an exponent that must not be 0.
Positive = Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)]


def option(hint: Any) -> Callable[[str], Any]:
    """The ``type`` of a command line's option.

    Args:
        hint (Any): What its value has to be.

    Returns:
        callable: Reads a text, and refuses it as argparse wants it.
    """
    check = compiled(hint)

    def read(text: str) -> Any:
        try:
            value = ast.literal_eval(text)
        except (SyntaxError, ValueError):
            value = text
        try:
            return check(value, KeyPath())
        except ValueError as error:
            raise argparse.ArgumentTypeError(
                f'{show(text)}, expected {describe(hint)}'
            ) from error

    return read
