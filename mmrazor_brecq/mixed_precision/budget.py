"""Read budgets, such as ``weight_bytes<=0.4MB, bops<=1.5G``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Optional

from .cost import CostModel


@dataclass(frozen=True)
class Budget:
    """Limits of one or several costs, all of which have to be kept.

    Attributes:
        text (str): The budget as the user wrote it.
        limits (dict[str, float]): Largest value of each cost, by the name
            of the cost model and in its own unit.

    Example:
        >>> parse_budget('weight_bytes<=2kB', dict(weight_bytes=WeightBytes()))
        Budget(text='weight_bytes<=2kB', limits={'weight_bytes': 2000.0})
    """

    text: str
    limits: Mapping[str, float]


LIMIT = re.compile(r'\s*(\w+)\s*<=\s*([0-9]*\.?[0-9]+(?:e[+-]?\d+)?)\s*(\w*)')


def parse_budget(text: str, costs: Mapping[str, CostModel]) -> Budget:
    """Read a budget.

    Args:
        text (str): One limit, or several with commas between them.
        costs (dict[str, CostModel]): Costs that can be limited, by name.

    Raises:
        ValueError: If the text is no budget, or if a cost or a unit of
            measure is unknown.
    """
    limits = {}
    for part in text.split(','):
        found = LIMIT.fullmatch(part.rstrip())
        if not found:
            raise ValueError(
                f'--budget {part!r} is no limit, expected one such as '
                "'weight_bytes<=0.4MB'"
            )
        name, number, unit = found.groups()
        if name == 'latency_ms' and name not in costs:
            raise ValueError(
                f'--budget {part!r} needs the times of the layers: give a '
                'table with --latency-table'
            )
        if name not in costs:
            raise ValueError(
                f'--budget {part!r} limits {name!r}, expected one of '
                f'{", ".join(costs)}'
            )
        units = costs[name].units
        if unit not in units:
            known = ', '.join(u for u in units if u)
            raise ValueError(
                f'--budget {part!r} has the unit of measure {unit!r}, '
                f'expected one of {known}, or none'
            )
        limits[name] = float(number) * units[unit]
    return Budget(text, limits)


def parse_uniform(text: str) -> tuple[int, Optional[int]]:
    """Read the name of a uniform model: ``w3`` or ``w3a4``.

    Args:
        text (str): The name, in upper or lower case.

    Returns:
        tuple[int, int | None]: Bits of weights and of activations, None if
        the name has no part for activations.

    Raises:
        ValueError: If the text is no such name.
    """
    found = re.fullmatch(r'w([2-8])(?:a([2-8]))?', text.lower())
    if not found:
        raise ValueError(
            f'--equal-to {text!r} is no uniform model, expected one such as '
            'w3 or w3a4, of 2 to 8 bits'
        )
    weight, activation = found.groups()
    return int(weight), int(activation) if activation else None
