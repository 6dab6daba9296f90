"""Choose which bits to give back to a model that lost too much accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Optional

from ..targets import FLOAT
from .bit_search import BitSearch
from .choices import choice_of
from .cost import LayerBits
from .pairwise import Pairwise
from .search import Infeasible, Problem

#: Part of the loss that is allowed on top of what the drop allows: drops are
#: measured on few images, and losses are predictions.
MARGIN = 0.8
#: Part of it that is allowed where nothing comes after.
LAST = 0.25


class GiveBack:
    """The bits of a model, given back where they buy most.

    An integer program finds the bit widths that cost least among those whose
    predicted loss is small enough: ``loss <= loss now * allowed / drop``,
    for a small drop grows like the loss. Each drop that is measured corrects
    the prediction.

    Args:
        search (BitSearch): The choices, with their loss and costs.
        start (dict[str, int]): Bits of ``weight`` and ``activation`` to begin
            with. No choice gets fewer.
        up_to_float (bool): Whether choices may also stay in float.

    Attributes:
        bits (dict[str, int]): Bits of every free choice, as they are now.
        gap (float, optional): How far above the least possible cost they
            are, relative to it; None if that is not known.
    """

    def __init__(
        self,
        search: BitSearch,
        start: Mapping[str, int],
        up_to_float: bool = False,
    ) -> None:
        kinds = {choice.name: choice.kind for choice in search.choices}
        search.bit_widths = {
            name: tuple(b for b in widths if b >= start[kinds[name]])
            or (max(widths),)
            for name, widths in search.bit_widths.items()
        }
        self.search = search
        self.loss = search.loss.restricted(search.leaders, search.bit_widths)
        self.bits = {name: min(b) for name, b in search.bit_widths.items()}
        self.up_to_float = up_to_float
        if up_to_float:
            self._add_float()
        searched = set(kinds.values())
        self.cost_name = 'bops' if 'activation' in searched else 'weight_bytes'
        self.cost = search.cost(self.cost_name)
        if up_to_float:
            self._keep_inputs_float()
        self.gap: Optional[float] = 0.0

    @property
    def predicted(self) -> float:
        """Loss of the bits as they are now, in nats an image."""
        return self.loss(self.bits)

    @property
    def layer_bits(self) -> LayerBits:
        """Bits of weight and input of every layer, 32 for float."""
        return self.search.found(self.bits)

    @property
    def exhausted(self) -> bool:
        """Whether no choice can get more."""
        widths = self.search.bit_widths
        return all(max(widths[n]) == b for n, b in self.bits.items())

    def give(self, allowed: float, drop: float, last: bool = False) -> None:
        """Give back bits after a drop that is too large.

        Args:
            allowed (float): The largest drop that is allowed.
            drop (float): The one that was measured with the bits now. One
                that is no number, or infinite, gives back everything.
            last (bool): Whether this has to suffice: then everything is
                given back, or if that means float, far more than needed.
        """
        part = allowed / drop if drop > 0 else 0.0
        if last and not self.up_to_float:
            part = 0.0
        limit = part * (LAST if last else MARGIN) * self.predicted
        before, everything = (
            dict(self.bits),
            {n: max(b) for n, b in self.search.bit_widths.items()},
        )
        try:
            solution = self.search.searcher(
                Problem(
                    self.cost, self.search.bit_widths, [(self.loss, limit)]
                )
            )
            self.bits, self.gap = solution.bits, solution.gap
        except (Infeasible, TimeoutError):
            self.bits, self.gap = everything, None
        if self.bits == before:  # Predicted to suffice, and did not.
            self.bits, self.gap = everything, None

    def _add_float(self) -> None:
        """Let every choice stay in float, where it costs no loss."""
        widths = self.search.bit_widths
        self.search.bit_widths = {n: (*b, FLOAT) for n, b in widths.items()}
        for name in self.loss.alone:
            self.loss.add(name, FLOAT, 0.0)
        for (one, two), table in self.loss.pairs.items():
            for a in self.search.bit_widths[one]:
                for b in self.search.bit_widths[two]:
                    table.setdefault((a, b), 0.0)

    def _keep_inputs_float(self) -> None:
        """Forbid integer inputs of layers whose weight is in float."""
        search, forbidden = self.search, Pairwise()
        more = 1e3 * abs(self.cost(dict.fromkeys(self.bits, FLOAT)))
        for choice in search.choices:
            if choice.kind != 'weight':
                continue
            other = choice_of(search.choices, 'activation', choice.layers[0])
            if other is None:
                continue
            names = search.leaders[choice.name], search.leaders[other.name]
            for bits in search.bit_widths[names[1]]:
                if bits != FLOAT:
                    forbidden.add_pair(names, (FLOAT, bits), more)
        for names, table in forbidden.pairs.items():
            for both, value in table.items():
                self.cost.add_pair(names, both, value)
