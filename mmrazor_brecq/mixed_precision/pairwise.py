"""Functions of bit widths: loss and cost of a model have one form."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

#: The width of every choice, by its name.
BitWidths = Mapping[str, int]


@dataclass
class Pairwise:
    """A sum of terms, each of the width of one choice or of two.

    ``f(b) = constant + sum_i alone_i(b_i) + sum_ij pairs_ij(b_i, b_j)``

    The loss that quantization causes is one such function (BRECQ, sec. 3.4:
    a layer by itself, and two layers of one unit), and the cost of a model
    is another: bit operations multiply a layer's weight and input width.

    Attributes:
        constant (float): What depends on no choice.
        alone (dict): ``alone[choice][bits]``.
        pairs (dict): ``pairs[choice, other][bits, bits of other]``.
    """

    constant: float = 0.0
    alone: dict[str, dict[int, float]] = field(default_factory=dict)
    pairs: dict[tuple[str, str], dict[tuple[int, int], float]] = field(
        default_factory=dict
    )

    def __call__(self, bits: BitWidths) -> float:
        """The value at some widths.

        Args:
            bits (dict[str, int]): The width of every choice.
        """
        total = self.constant
        for name, terms in self.alone.items():
            total += terms[bits[name]]
        for (first, second), table in self.pairs.items():
            total += table[bits[first], bits[second]]
        return total

    def diagonal(self) -> Pairwise:
        """The same without pairs."""
        return Pairwise(self.constant, self.alone)

    def add(self, name: str, bits: int, value: float) -> None:
        """Add to a term of one choice."""
        terms = self.alone.setdefault(name, {})
        terms[bits] = terms.get(bits, 0.0) + value

    def add_pair(
        self, names: tuple[str, str], bits: tuple[int, int], value: float
    ) -> None:
        """Add to a term of two choices, given in either order."""
        if names[::-1] in self.pairs:
            names, bits = names[::-1], bits[::-1]
        table = self.pairs.setdefault(names, {})
        table[bits] = table.get(bits, 0.0) + value

    def update(self, other: Pairwise) -> None:
        """Add another function of other terms."""
        self.constant += other.constant
        self.alone.update(other.alone)
        self.pairs.update(other.pairs)

    def bounded(self) -> Pairwise:
        """The same with pairs that take away no more than they can.

        Where errors are large, two of them often do little more harm than
        one, and the sum of many such pairs would fall below nought. Here a
        pair of ``n`` choices that all interact takes away at most
        ``2 / n`` of the smaller of its two terms: then the sum is never
        below the largest term of one choice. (With these terms in falling
        order, ``k`` of them count ``k - k (k - 1) / n >= 1`` together.)
        """
        others: dict[str, int] = {}
        for pair in self.pairs:
            for name in pair:
                others[name] = others.get(name, 0) + 1
        result = Pairwise(self.constant, self.alone)
        for (one, two), table in self.pairs.items():
            share = 2 / (1 + max(others[one], others[two]))
            for (a, b), value in table.items():
                least = min(self.alone[one][a], self.alone[two][b])
                value = max(value, -share * least)
                result.add_pair((one, two), (a, b), value)
        return result

    def restricted(
        self,
        leaders: Mapping[str, str],
        widths: Mapping[str, Iterable[int]],
    ) -> Pairwise:
        """The same function where choices share their widths.

        Args:
            leaders (dict[str, str]): For each choice the one whose width
                it takes, itself if it is free.
            widths (dict[str, tuple]): The widths that each leader may have.

        Returns:
            Pairwise: A function of the leaders alone, at those widths.
        """
        result = Pairwise(self.constant)
        for name, terms in self.alone.items():
            for bits in widths[leaders[name]]:
                result.add(leaders[name], bits, terms[bits])
        for (first, second), table in self.pairs.items():
            one, two = leaders[first], leaders[second]
            if one == two:
                for bits in widths[one]:
                    result.add(one, bits, table[bits, bits])
                continue
            for a in widths[one]:
                for b in widths[two]:
                    result.add_pair((one, two), (a, b), table[a, b])
        return result
