"""A model, what its widths do to the loss, and what they cost: to search."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Optional

from ..registry import TASK_UTILS
from .budget import Budget
from .choices import KINDS, Choice, SearchSpace
from .cost import CostModel, LayerBits
from .pairwise import BitWidths, Pairwise
from .search import (
    ExactSearch,
    Infeasible,
    Problem,
    Searcher,
    SearcherConfig,
    Solution,
)
from .shapes import ModelShape


class BitSearch:
    """Searches the widths of a model within budgets.

    Args:
        space (SearchSpace): Which widths are allowed.
        shape (ModelShape): What costs depend on.
        bits (dict): Bit widths of the config, which hold where there is no
            choice.
        choices (list[Choice]): What there is to choose.
        loss (Pairwise): What the choices do to the loss.
        costs (list[CostModel]): What can be limited.
        searcher (dict): How to search.
    """

    def __init__(
        self,
        space: SearchSpace,
        shape: ModelShape,
        bits: LayerBits,
        choices: Sequence[Choice],
        loss: Pairwise,
        costs: Sequence[CostModel],
        searcher: Optional[SearcherConfig] = None,
    ) -> None:
        self.space = space
        self.shape = shape
        self.bits = bits
        self.choices = choices
        self.loss = loss.bounded()
        self.costs = {cost.name: cost for cost in costs}
        self.searcher = TASK_UTILS.build(searcher or dict(type='ExactSearch'))
        self.leaders, self.widths = space.common(choices)
        self.free_loss = self.loss.restricted(self.leaders, self.widths)

    def cost(self, name: str) -> Pairwise:
        """A cost as a function of the choices that are free."""
        whole = self.costs[name].pairwise(
            self.shape,
            self.bits,
            self.choices,
            {c.name: self.widths[self.leaders[c.name]] for c in self.choices},
        )
        return whole.restricted(self.leaders, self.widths)

    def solve(
        self, budget: Budget, searcher: Optional[Searcher] = None
    ) -> Solution:
        """The widths of least loss.

        Args:
            budget (Budget): What to keep to.
            searcher (callable, optional): In place of the one of the search.

        Raises:
            ValueError: If no widths keep to the budget; it names the
                smallest that some do.
        """
        limits = [
            (self.cost(name), limit) for name, limit in budget.limits.items()
        ]
        try:
            return (searcher or self.searcher)(
                Problem(self.free_loss, self.widths, limits)
            )
        except Infeasible as error:
            raise ValueError(self._infeasible(budget)) from error

    def check(self, budget: Budget) -> None:
        """See that some widths keep to a budget: that needs costs alone.

        Raises:
            ValueError: If none do; it names what can be reached.
        """
        with suppress(TimeoutError):  # Then it shows in the search.
            self.solve(budget, ExactSearch())

    def _infeasible(self, budget: Budget) -> str:
        """Say what can be reached."""
        widest = self.costs_of(self.widest())
        least = {name: self.smallest(name) for name in budget.limits}
        words = (
            f'No widths keep to the budget {budget.text!r}: the smallest '
            'feasible one is '
            + ' or '.join(f'{name}<={x:.12g}' for name, x in least.items())
            + ', the largest model has '
            + ' and '.join(f'{name} {widest[name]:.12g}' for name in least)
        )
        if all(x <= budget.limits[name] for name, x in least.items()):
            words += ' (each limit can be kept, but not all of them together)'
        return (
            f'{words}. Raise it, or allow narrower widths '
            '(`mixed_precision.bits`, `.allowed`)'
        )

    def smallest(self, name: str) -> float:
        """The least that a cost can be."""
        return ExactSearch()(Problem(self.cost(name), self.widths)).loss

    def found(self, bits: BitWidths) -> LayerBits:
        """Bits of weight and input of every layer.

        Args:
            bits (dict[str, int]): Width of every choice that is free, as in
                a solution.
        """
        return self._widths(lambda choice: bits[self.leaders[choice.name]])

    def widest(self) -> LayerBits:
        """Bit widths of every layer if all are as wide as they may be."""
        return self.found({name: max(w) for name, w in self.widths.items()})

    def uniform(
        self, weight: int, activation: Optional[int] = None
    ) -> LayerBits:
        """Bit widths of every layer if all that may be chosen are equal.

        Args:
            weight (int): Width of weights.
            activation (int, optional): Width of activations; that of the
                config by default.
        """
        widths = dict(weight=weight, activation=activation)
        return self._widths(lambda choice: widths[choice.kind])

    def _widths(self, width: Callable[[Choice], Optional[int]]) -> LayerBits:
        bits = {name: list(pair) for name, pair in self.bits.items()}
        for choice in self.choices:
            for layer in choice.layers:
                chosen = width(choice)
                if chosen is not None:
                    bits[layer][KINDS.index(choice.kind)] = chosen
        return {name: (w, a) for name, (w, a) in bits.items()}  # type: ignore

    def costs_of(self, bits: LayerBits) -> dict[str, float]:
        """Every cost of a model."""
        return {k: cost.of(self.shape, bits) for k, cost in self.costs.items()}

    def loss_of(self, bits: LayerBits) -> Optional[float]:
        """The predicted loss of a model, where its widths were measured."""
        widths = {
            choice.name: bits[choice.layers[0]][KINDS.index(choice.kind)]
            for choice in self.choices
        }
        if not set(widths.values()) <= set(self.space.bits):
            return None
        return self.loss(widths)  # type: ignore[arg-type]
