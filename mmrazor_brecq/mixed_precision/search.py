"""Searchers: the widths of least loss that a budget allows.

An exact one, and the paper's genetic one to compare it with. All of them
take the same problem and give the same kind of solution.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Optional

import numpy as np
from pydantic import Field

from .._requirements import require
from ..registry import TASK_UTILS
from ..validation import Config, Count, Fraction, Seed
from .pairwise import Pairwise


class Infeasible(ValueError):
    """No widths keep to the limits."""


@dataclass
class Problem:
    """What is to be made small, and what has to be kept.

    Attributes:
        loss (Pairwise): To be made small.
        widths (dict): The widths that each choice may have.
        limits (list): Pairs of a cost (Pairwise) and the most of it.
    """

    loss: Pairwise
    widths: Mapping[str, Sequence[int]]
    limits: list[tuple[Pairwise, float]] = field(default_factory=list)

    def keeps(self, bits: Mapping[str, int]) -> bool:
        """Whether some widths keep to all limits."""
        return all(
            cost(bits) <= limit + 1e-9 * abs(limit)
            for cost, limit in self.limits
        )


@dataclass
class Solution:
    """What a searcher found.

    Attributes:
        bits (dict): Width of every choice.
        loss (float): Loss at these widths.
        gap (float, optional): How far, relative to the loss, the best
            possible solution can be below; 0 is a proof that there is no
            better one, None that nothing is known.
        seconds (float): Time spent.
    """

    bits: dict[str, int]
    loss: float
    gap: Optional[float]
    seconds: float


class Searcher:
    """What searches have in common."""

    def __call__(self, problem: Problem) -> Solution:
        """Search.

        Args:
            problem (Problem): What to make small, and within what.

        Raises:
            Infeasible: If no widths keep to the limits.
        """
        raise NotImplementedError


#: How a parameter says that it takes a search.
SearcherConfig = Annotated[dict, Config(Searcher, TASK_UTILS)]
#: Seconds.
Limit = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@TASK_UTILS.register_module()
class ExactSearch(Searcher):
    """An integer program, solved to proven optimality by HiGHS.

    A binary variable for every choice and width says that it is taken.
    Where a term depends on two choices, a variable for every pair of widths
    stands for the product of their two; its sums along either side are the
    binaries themselves, which makes it a product without asking it to be
    whole, and keeps the relaxation tight.

    Args:
        time_limit (float): Seconds after which the best solution so far is
            taken, with the gap that is left.
        gap (float): Relative gap that counts as optimal.
    """

    def __init__(self, time_limit: Limit = 60.0, gap: Fraction = 1e-6) -> None:
        self.time_limit = time_limit
        self.gap = gap

    def __call__(self, problem: Problem) -> Solution:
        """Solve.

        Args:
            problem (Problem): What to make small, and within what.

        Returns:
            Solution: With its gap.

        Raises:
            Infeasible: If no widths keep to the limits.
            TimeoutError: If the time was not enough to find any.
        """
        start = time.perf_counter()
        program = _Program(problem)
        result = program.solve(self.time_limit, self.gap)
        if result.x is None:
            if result.status == 2:
                raise Infeasible('No widths keep to the limits')
            raise TimeoutError(
                f'No solution within {self.time_limit} s '
                f'({result.message}): raise `time_limit` of the searcher'
            )
        bits = program.widths(result.x)
        gap = None if result.mip_gap is None else float(result.mip_gap)
        return Solution(
            bits, problem.loss(bits), gap, time.perf_counter() - start
        )


class _Program:
    """The integer program of a problem."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        functions = [problem.loss] + [cost for cost, _ in problem.limits]
        self.places: dict[tuple, int] = {}
        for name, widths in problem.widths.items():
            for bits in widths:
                self._place(name, bits)
        self.binaries = len(self.places)
        # Orders of two names are one pair, in the order that comes first.
        self.pairs = list(
            {
                frozenset(pair): pair for f in functions for pair in f.pairs
            }.values()
        )
        for first, second in self.pairs:
            for a in problem.widths[first]:
                for b in problem.widths[second]:
                    self._place(first, a, second, b)

    def _place(self, *key: Any) -> int:
        return self.places.setdefault(key, len(self.places))

    def row(self, function: Pairwise) -> np.ndarray:
        """The coefficients of a function."""
        row = np.zeros(len(self.places))
        for name, terms in function.alone.items():
            for bits in self.problem.widths[name]:
                row[self.places[name, bits]] += terms[bits]
        for (first, second), table in function.pairs.items():
            for (a, b), value in table.items():
                place = self.places.get((first, a, second, b))
                if place is None:
                    place = self.places[second, b, first, a]
                row[place] += value
        return row

    def _consistency(self) -> tuple[Any, np.ndarray]:
        """One width for a choice; pairs that sum to what they pair."""
        rows: list[tuple[list[int], list[int], float]] = []
        widths = self.problem.widths
        for name in widths:
            ones = [self.places[name, bits] for bits in widths[name]]
            rows.append((ones, [], 1.0))
        for first, second in self.pairs:
            for a in widths[first]:
                products = [
                    self.places[first, a, second, b] for b in widths[second]
                ]
                rows.append((products, [self.places[first, a]], 0.0))
            for b in widths[second]:
                products = [
                    self.places[first, a, second, b] for a in widths[first]
                ]
                rows.append((products, [self.places[second, b]], 0.0))
        at, columns, values = [], [], []
        for i, (plus, minus, _) in enumerate(rows):
            at += [i] * (len(plus) + len(minus))
            columns += plus + minus
            values += [1.0] * len(plus) + [-1.0] * len(minus)
        matrix = require('scipy.sparse').coo_array(
            (values, (at, columns)), (len(rows), len(self.places))
        )
        return matrix.tocsr(), np.array([right for _, _, right in rows])

    def solve(self, time_limit: float, gap: float) -> Any:
        """Hand it to the solver."""
        solver = require('scipy.optimize')
        matrix, right = self._consistency()
        constraints = [solver.LinearConstraint(matrix, right, right)]
        for cost, limit in self.problem.limits:
            # The solver's tolerances are absolute: 1e-6 of 1e4 is little.
            room = limit - cost.constant
            scale = 1e4 / abs(room) if room else 1.0
            constraints.append(
                solver.LinearConstraint(
                    scale * self.row(cost)[None], -np.inf, scale * room
                )
            )
        # And the losses of wide layers are small: the middle one of them is
        # brought to 1.
        objective = self.row(self.problem.loss)
        sizes = np.abs(objective[objective != 0])
        middle = np.median(sizes) if len(sizes) else 1.0
        whole = np.zeros(len(self.places))
        whole[: self.binaries] = 1
        return solver.milp(
            objective / middle,
            integrality=whole,
            bounds=solver.Bounds(0, 1),
            constraints=constraints,
            options=dict(time_limit=time_limit, mip_rel_gap=gap),
        )

    def widths(self, x: np.ndarray) -> dict[str, int]:
        """The widths that a solution takes."""
        return {
            name: max(widths, key=lambda b: x[self.places[name, b]])
            for name, widths in self.problem.widths.items()
        }


@TASK_UTILS.register_module()
class GeneticSearch(Searcher):
    """The paper's genetic algorithm (BRECQ, sec. 3.4 and its appendix).

    Bit widths of a population cross over and mutate; those that break a limit
    are narrowed until they do not, so that the constraint always holds.

    Args:
        population (int): Members of a generation.
        parents (int): Best members, which the next generation comes from.
        generations (int): How many.
        mutation (float): Probability with which a width is drawn anew.
        seed (int): Of all random numbers.
    """

    def __init__(
        self,
        population: Count = 50,
        parents: Count = 10,
        generations: Count = 100,
        mutation: Fraction = 0.1,
        seed: Seed = 0,
    ) -> None:
        self.population = population
        self.parents = parents
        self.generations = generations
        self.mutation = mutation
        self.seed = seed

    def __call__(self, problem: Problem) -> Solution:
        """Search.

        Args:
            problem (Problem): What to make small, and within what.

        Returns:
            Solution: Without a gap, since nothing is proven.

        Raises:
            Infeasible: If not even the narrowest widths keep to the limits.
        """
        start = time.perf_counter()
        rng = random.Random(self.seed)
        narrow = {name: min(w) for name, w in problem.widths.items()}
        if not problem.keeps(narrow):
            raise Infeasible('Not even the narrowest widths keep the limits')
        members = [narrow]
        while len(members) < self.population:
            drawn = {n: rng.choice(w) for n, w in problem.widths.items()}
            members.append(self._kept(problem, drawn, rng))
        for _ in range(self.generations):
            members.sort(key=problem.loss)
            best = members[: self.parents]
            members = best + [
                self._kept(problem, self._child(problem, best, rng), rng)
                for _ in range(self.population - len(best))
            ]
        found = min(members, key=problem.loss)
        return Solution(
            found, problem.loss(found), None, time.perf_counter() - start
        )

    def _child(
        self,
        problem: Problem,
        parents: list[dict[str, int]],
        rng: random.Random,
    ) -> dict[str, int]:
        """Crossed from two parents, or mutated from one."""
        one, two = rng.sample(parents, 2)
        if rng.random() < 0.5:
            return {n: rng.choice((one[n], two[n])) for n in one}
        return {
            name: rng.choice(widths)
            if rng.random() < self.mutation
            else one[name]
            for name, widths in problem.widths.items()
        }

    @staticmethod
    def _kept(
        problem: Problem, bits: dict[str, int], rng: random.Random
    ) -> dict[str, int]:
        """Narrowed one choice after the other until the limits hold."""
        bits, names = dict(bits), list(bits)
        rng.shuffle(names)
        while not problem.keeps(bits):
            for name in names:
                below = [w for w in problem.widths[name] if w < bits[name]]
                if below:
                    bits[name] = max(below)
                    if problem.keeps(bits):
                        break
        return bits
