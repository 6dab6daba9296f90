"""Problems of a search for bit widths, solutions, and the base of searchers.

There is an exact searcher, and the paper's genetic one to compare it with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Optional

from ..registry import TASK_UTILS
from ..validation import Config
from .pairwise import BitWidths, Pairwise


class Infeasible(ValueError):
    """Error: no bit widths keep to the limits."""


@dataclass
class Problem:
    """A loss to minimize, and limits to keep.

    Attributes:
        loss (Pairwise): What is minimized.
        bit_widths (dict): Bit widths that each choice may have, by its name.
        limits (list): Pairs of a cost (Pairwise) and its largest value.
    """

    loss: Pairwise
    bit_widths: Mapping[str, Sequence[int]]
    limits: Sequence[tuple[Pairwise, float]] = field(default_factory=list)

    def keeps(self, bits: BitWidths) -> bool:
        """Return whether all limits are kept.

        Args:
            bits (dict[str, int]): Bits of every choice.
        """
        return all(
            cost(bits) <= limit + 1e-9 * abs(limit)
            for cost, limit in self.limits
        )


@dataclass
class Solution:
    """Result of a search.

    Attributes:
        bits (dict[str, int]): Bits of every choice, by its name.
        loss (float): Loss at these bits.
        gap (float, optional): How far the best possible loss can be below,
            relative to it; 0 proves that there is no better solution, None
            means that nothing is known.
        seconds (float): Time of the search.
    """

    bits: dict[str, int]
    loss: float
    gap: Optional[float]
    seconds: float


class Searcher:
    """Base class of searchers."""

    def __call__(self, problem: Problem) -> Solution:
        """Solve a problem.

        Args:
            problem (Problem): What is minimized, and within which limits.

        Returns:
            Solution: The best one found.

        Raises:
            Infeasible: If no bit widths keep to the limits.
        """
        raise NotImplementedError


#: How a parameter says that it takes a searcher.
SearcherConfig = Annotated[dict, Config(Searcher, TASK_UTILS)]
