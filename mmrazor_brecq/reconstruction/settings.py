"""Refuses settings that make no sense, before any work starts."""

from __future__ import annotations

import math
from typing import Any


def check_counts(owner: Any, *names: str) -> None:
    """See that attributes are whole numbers of 1 or more.

    Args:
        owner (object): What was set up.
        names (str): Of its attributes, and of the arguments they come from.

    Raises:
        ValueError: If one is not.
    """
    for name in names:
        value = getattr(owner, name)
        if not isinstance(value, int) or value < 1:
            raise _refusal(owner, name, 'a whole number, 1 or more')


def check_amounts(owner: Any, *names: str) -> None:
    """See that attributes are finite numbers of 0 or more.

    Args:
        owner (object): What was set up.
        names (str): Of its attributes, and of the arguments they come from.

    Raises:
        ValueError: If one is not.
    """
    for name in names:
        value = getattr(owner, name)
        if not isinstance(value, (int, float)) or not 0 <= value < math.inf:
            raise _refusal(owner, name, 'a finite number, 0 or more')


def _refusal(owner: Any, name: str, expected: str) -> ValueError:
    return ValueError(
        f'{name}={getattr(owner, name)!r}, expected {expected}: change '
        f'`{name}` of {type(owner).__name__}'
    )
