"""Search exactly, by an integer program."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import numpy as np
from pydantic import Field

from .._requirements import require
from ..registry import TASK_UTILS
from ..validation import Fraction
from .pairwise import Pairwise
from .search import Infeasible, Problem, Searcher, Solution

if TYPE_CHECKING:
    from scipy.optimize import OptimizeResult
    from scipy.sparse import csr_array

#: A time in seconds.
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@TASK_UTILS.register_module()
class ExactSearch(Searcher):
    """An integer program that HiGHS solves to proven optimality.

    A binary variable for every choice and bit width says that it is taken.
    Where a term depends on two choices, a variable for every pair of bit
    widths stands for the product of their binaries. Its sums over either
    choice are the binaries of the other one. This makes it a product without
    an integrality constraint, and keeps the relaxation tight.

    Args:
        time_limit (float): Seconds after which the best solution so far is
            taken, with the gap that is left.
        gap (float): Relative gap that counts as optimal, 0 to 1.

    Example:
        >>> loss = Pairwise(alone=dict(a={2: 0.5, 8: 0.0}, b={2: 0.1, 8: 0.0}))
        >>> cost = Pairwise(alone=dict(a={2: 2, 8: 8}, b={2: 2, 8: 8}))
        >>> problem = Problem(loss, dict(a=[2, 8], b=[2, 8]), [(cost, 10)])
        >>> ExactSearch()(problem).bits
        {'a': 8, 'b': 2}
    """

    def __init__(
        self, time_limit: Seconds = 60.0, gap: Fraction = 1e-6
    ) -> None:
        self.time_limit = time_limit
        self.gap = gap

    def __call__(self, problem: Problem) -> Solution:
        """Solve a problem.

        Args:
            problem (Problem): What is minimized, and within which limits.

        Returns:
            Solution: The best one, with its gap.

        Raises:
            Infeasible: If no bit widths keep to the limits.
            TimeoutError: If none were found within the time limit.
        """
        start = time.perf_counter()
        program = _Program(problem)
        result = program.solve(self.time_limit, self.gap)
        if result.x is None:
            if result.status == 2:
                raise Infeasible('No bit widths keep to the limits')
            raise TimeoutError(
                f'No solution within {self.time_limit} s '
                f'({result.message}): raise `time_limit` of the searcher'
            )
        bits = program.bits(result.x)
        gap = None if result.mip_gap is None else float(result.mip_gap)
        return Solution(
            bits, problem.loss(bits), gap, time.perf_counter() - start
        )


class _Program:
    """The integer program of a problem.

    Args:
        problem (Problem): What is minimized, and within which limits.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        functions = [problem.loss] + [cost for cost, _ in problem.limits]
        # Functions may name a pair in either order.
        self.pairs = list(
            {
                frozenset(pair): pair for f in functions for pair in f.pairs
            }.values()
        )
        binaries = [
            (name, bits)
            for name, bit_widths in problem.bit_widths.items()
            for bits in dict.fromkeys(bit_widths)
        ]
        products = [
            (first, a, second, b)
            for first, second in self.pairs
            for a in problem.bit_widths[first]
            for b in problem.bit_widths[second]
        ]
        self.binaries = len(binaries)
        #: Index of each variable: of a choice's bits, or of a pair's.
        self.columns: dict[tuple, int] = {
            key: i
            for i, key in enumerate(dict.fromkeys([*binaries, *products]))
        }

    def row(self, function: Pairwise) -> np.ndarray:
        """Return the coefficients of a function, without its constant."""
        row = np.zeros(len(self.columns))
        for name, terms in function.alone.items():
            for bits in self.problem.bit_widths[name]:
                row[self.columns[name, bits]] += terms[bits]
        for (first, second), table in function.pairs.items():
            for (a, b), value in table.items():
                column = self.columns.get((first, a, second, b))
                if column is None:
                    column = self.columns[second, b, first, a]
                row[column] += value
        return row

    def _equations(self) -> tuple[csr_array, np.ndarray]:
        """Return the matrix and right side of all equations.

        The binaries of a choice sum to 1, and the products of a pair, over
        either choice, to the binary of the other one.
        """
        # Columns that are added, columns that are subtracted, right side.
        rows: list[tuple[list[int], list[int], float]] = []
        bit_widths = self.problem.bit_widths
        for name in bit_widths:
            ones = [self.columns[name, bits] for bits in bit_widths[name]]
            rows.append((ones, [], 1.0))
        for first, second in self.pairs:
            for a in bit_widths[first]:
                products = [
                    self.columns[first, a, second, b]
                    for b in bit_widths[second]
                ]
                rows.append((products, [self.columns[first, a]], 0.0))
            for b in bit_widths[second]:
                products = [
                    self.columns[first, a, second, b]
                    for a in bit_widths[first]
                ]
                rows.append((products, [self.columns[second, b]], 0.0))
        indices, columns, values = [], [], []
        for i, (plus, minus, _) in enumerate(rows):
            indices += [i] * (len(plus) + len(minus))
            columns += plus + minus
            values += [1.0] * len(plus) + [-1.0] * len(minus)
        matrix = require('scipy.sparse').coo_array(
            (values, (indices, columns)), (len(rows), len(self.columns))
        )
        return matrix.tocsr(), np.array([right for _, _, right in rows])

    def solve(self, time_limit: float, gap: float) -> OptimizeResult:
        """Run the solver.

        Args:
            time_limit (float): Seconds.
            gap (float): Relative gap that counts as optimal.
        """
        solver = require('scipy.optimize')
        matrix, right = self._equations()
        constraints = [solver.LinearConstraint(matrix, right, right)]
        for cost, limit in self.problem.limits:
            # The solver's tolerances are absolute, so that a limit of 1e4
            # makes 1e-6 negligible.
            budget = limit - cost.constant
            factor = 1e4 / abs(budget) if budget else 1.0
            constraints.append(
                solver.LinearConstraint(
                    factor * self.row(cost)[None], -np.inf, factor * budget
                )
            )
        # Losses are small at many bits, so the median one is scaled to 1.
        objective = self.row(self.problem.loss)
        sizes = np.abs(objective[objective != 0])
        median = np.median(sizes) if len(sizes) else 1.0
        integrality = np.zeros(len(self.columns))
        integrality[: self.binaries] = 1
        return solver.milp(
            objective / median,
            integrality=integrality,
            bounds=solver.Bounds(0, 1),
            constraints=constraints,
            options=dict(time_limit=time_limit, mip_rel_gap=gap),
        )

    def bits(self, x: np.ndarray) -> dict[str, int]:
        """Return the bits of every choice from the values of all variables."""
        return {
            name: max(bit_widths, key=lambda b: x[self.columns[name, b]])
            for name, bit_widths in self.problem.bit_widths.items()
        }
