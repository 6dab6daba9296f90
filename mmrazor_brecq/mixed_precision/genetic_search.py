"""Search by the genetic algorithm of the paper."""

from __future__ import annotations

import random
import time

from ..registry import TASK_UTILS
from ..validation import Count, Fraction, Seed
from .search import Infeasible, Problem, Searcher, Solution


@TASK_UTILS.register_module()
class GeneticSearch(Searcher):
    """The genetic algorithm of the paper (BRECQ, sec. 3.4 and its appendix).

    The bits of a population cross over and mutate; those that break a limit
    are reduced until they keep it.

    Args:
        population (int): Members of a generation.
        parents (int): Best members, from which the next generation comes.
        generations (int): Number of generations.
        mutation (float): Probability that the bits of a choice are drawn
            anew, 0 to 1.
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
        """Solve a problem.

        Args:
            problem (Problem): What is minimized, and within which limits.

        Returns:
            Solution: Without a gap, since nothing is proven.

        Raises:
            Infeasible: If not even the fewest bits keep to the limits.
        """
        start = time.perf_counter()
        rng = random.Random(self.seed)
        fewest = {name: min(b) for name, b in problem.bit_widths.items()}
        if not problem.keeps(fewest):
            raise Infeasible('Not even the fewest bits keep to the limits')
        members = [fewest]
        while len(members) < self.population:
            drawn = {n: rng.choice(b) for n, b in problem.bit_widths.items()}
            members.append(self._reduced(problem, drawn, rng))
        for _ in range(self.generations):
            members.sort(key=problem.loss)
            best = members[: self.parents]
            members = best + [
                self._reduced(problem, self._child(problem, best, rng), rng)
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
        """Cross two parents, or mutate one."""
        one, two = rng.sample(parents, 2)
        if rng.random() < 0.5:
            return {n: rng.choice((one[n], two[n])) for n in one}
        return {
            name: rng.choice(bit_widths)
            if rng.random() < self.mutation
            else one[name]
            for name, bit_widths in problem.bit_widths.items()
        }

    @staticmethod
    def _reduced(
        problem: Problem, bits: dict[str, int], rng: random.Random
    ) -> dict[str, int]:
        """Reduce one choice after the other until the limits are kept."""
        bits, names = dict(bits), list(bits)
        rng.shuffle(names)
        while not problem.keeps(bits):
            for name in names:
                lower = [b for b in problem.bit_widths[name] if b < bits[name]]
                if lower:
                    bits[name] = max(lower)
                    if problem.keeps(bits):
                        break
        return bits
