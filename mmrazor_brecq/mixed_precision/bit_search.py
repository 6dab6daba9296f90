"""Search the bit widths of a model within budgets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Optional

from ..registry import TASK_UTILS
from .budget import Budget
from .choices import KINDS, Choice
from .cost import CostModel, LayerBits
from .exact_search import ExactSearch
from .pairwise import BitWidths, Pairwise
from .search import (
    Infeasible,
    Problem,
    Searcher,
    SearcherConfig,
    Solution,
)
from .search_space import SearchSpace
from .shapes import ModelShape


class BitSearch:
    """Search of the bit widths of one model.

    Args:
        space (SearchSpace): Which bit widths are allowed.
        shape (ModelShape): What costs depend on.
        bits (dict): Bits of the config, for layers without a choice.
        choices (list[Choice]): What there is to choose.
        loss (Pairwise): Loss as a function of the choices.
        costs (list[CostModel]): Costs that a budget can limit.
        searcher (dict, optional): Config of the searcher; by default an
            exact one.
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
        self.leaders, self.bit_widths = space.common(choices)
        self.free_loss = self.loss.restricted(self.leaders, self.bit_widths)

    def cost(self, name: str) -> Pairwise:
        """Return a cost as a function of the choices that are free.

        Args:
            name (str): Name of the cost model.
        """
        cost = self.costs[name].pairwise(
            self.shape,
            self.bits,
            self.choices,
            {
                choice.name: self.bit_widths[self.leaders[choice.name]]
                for choice in self.choices
            },
        )
        return cost.restricted(self.leaders, self.bit_widths)

    def solve(
        self, budget: Budget, searcher: Optional[Searcher] = None
    ) -> Solution:
        """Find the bit widths with the smallest loss within a budget.

        Args:
            budget (Budget): Limits of costs.
            searcher (callable, optional): Replaces the configured one.

        Returns:
            Solution: Bits of every free choice.

        Raises:
            ValueError: If no bit widths keep to the budget; the message
                names the smallest feasible one.
        """
        limits = [
            (self.cost(name), limit) for name, limit in budget.limits.items()
        ]
        try:
            return (searcher or self.searcher)(
                Problem(self.free_loss, self.bit_widths, limits)
            )
        except Infeasible as error:
            raise ValueError(self._infeasible(budget)) from error

    def check(self, budget: Budget) -> None:
        """Check that some bit widths keep to a budget; this needs no loss.

        Args:
            budget (Budget): Limits of costs.

        Raises:
            ValueError: If none do; the message names the smallest feasible
                budget.
        """
        with suppress(TimeoutError):  # The search itself will report it.
            self.solve(budget, ExactSearch())

    def _infeasible(self, budget: Budget) -> str:
        """Return a message that names what can be reached."""
        largest = self.costs_of(self.largest())
        smallest = {name: self.smallest(name) for name in budget.limits}
        message = (
            f'No bit widths keep to the budget {budget.text!r}: the smallest '
            'feasible one is '
            + ' or '.join(f'{name}<={x:.12g}' for name, x in smallest.items())
            + ', the largest model has '
            + ' and '.join(f'{name} {largest[name]:.12g}' for name in smallest)
        )
        if all(x <= budget.limits[name] for name, x in smallest.items()):
            message += (
                ' (each limit can be kept, but not all of them together)'
            )
        return (
            f'{message}. Raise it, or allow fewer bits '
            '(`mixed_precision.bits`, `.allowed`)'
        )

    def smallest(self, name: str) -> float:
        """Return the smallest value that a cost can have."""
        problem = Problem(self.cost(name), self.bit_widths)
        return ExactSearch()(problem).loss

    def found(self, bits: BitWidths) -> LayerBits:
        """Return the bits of weight and input of every layer.

        Args:
            bits (dict[str, int]): Bits of every choice that is free, as in
                a solution.
        """
        return self._layer_bits(lambda choice: bits[self.leaders[choice.name]])

    def largest(self) -> LayerBits:
        """Return the bits of every layer if all have as many as allowed."""
        return self.found(
            {name: max(b) for name, b in self.bit_widths.items()}
        )

    def uniform(
        self, weight: int, activation: Optional[int] = None
    ) -> LayerBits:
        """Return the bits of every layer if all choices are equal.

        Args:
            weight (int): Bits of weights.
            activation (int, optional): Bits of activations; by default those
                of the config.
        """
        bits = dict(weight=weight, activation=activation)
        return self._layer_bits(lambda choice: bits[choice.kind])

    def _layer_bits(
        self, bits_of: Callable[[Choice], Optional[int]]
    ) -> LayerBits:
        """Return the bits of every layer, some of them chosen.

        Args:
            bits_of (callable): Returns the bits of a choice; None keeps
                those of the config.
        """
        weights = {name: bits[0] for name, bits in self.bits.items()}
        inputs = {name: bits[1] for name, bits in self.bits.items()}
        for choice in self.choices:
            bits = bits_of(choice)
            if bits is None:
                continue
            for layer in choice.layers:
                if choice.kind == 'weight':
                    weights[layer] = bits
                else:
                    inputs[layer] = bits
        return {name: (weights[name], inputs[name]) for name in self.bits}

    def costs_of(self, bits: LayerBits) -> dict[str, float]:
        """Return every cost of a model.

        Args:
            bits (dict): Bits of weight and input of every layer.
        """
        return {k: cost.of(self.shape, bits) for k, cost in self.costs.items()}

    def loss_of(self, bits: LayerBits) -> Optional[float]:
        """Return the predicted loss of a model, in nats an image.

        Args:
            bits (dict): Bits of weight and input of every layer.

        Returns:
            float: The loss; None if some of these bits were not measured.
        """
        chosen: dict[str, int] = {}
        for choice in self.choices:
            layer_bits = bits[choice.layers[0]][KINDS.index(choice.kind)]
            if layer_bits is None or layer_bits not in self.space.bits:
                return None
            chosen[choice.name] = layer_bits
        return self.loss(chosen)
