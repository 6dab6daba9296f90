"""Functions of bit widths: loss and cost of a model have one form."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

#: Bits of every choice, by its name.
BitWidths = Mapping[str, int]


@dataclass
class Pairwise:
    """Sum of terms, each of which depends on the bits of one or two choices.

    ``f(b) = constant + sum_i alone_i(b_i) + sum_ij pairs_ij(b_i, b_j)``

    The loss that quantization causes is one such function (BRECQ, sec. 3.4:
    a layer by itself, and two layers of one unit). The cost of a model is
    another: bit operations multiply the bits of a layer's weight and input.

    Attributes:
        constant (float): Part that depends on no choice.
        alone (dict): ``alone[choice][bits]``.
        pairs (dict): ``pairs[choice, other][bits, bits of other]``.

    Example:
        >>> loss = Pairwise(alone=dict(a={2: 0.5, 4: 0.1}, b={2: 0.3}))
        >>> loss.add_pair(('a', 'b'), (4, 2), 0.05)
        >>> round(loss(dict(a=4, b=2)), 2)
        0.45
    """

    constant: float = 0.0
    alone: dict[str, dict[int, float]] = field(default_factory=dict)
    pairs: dict[tuple[str, str], dict[tuple[int, int], float]] = field(
        default_factory=dict
    )

    def __call__(self, bits: BitWidths) -> float:
        """Evaluate the function.

        Args:
            bits (dict[str, int]): Bits of every choice.
        """
        total = self.constant
        for name, terms in self.alone.items():
            total += terms[bits[name]]
        for (first, second), table in self.pairs.items():
            total += table[bits[first], bits[second]]
        return total

    def diagonal(self) -> Pairwise:
        """Return the function without its pairs."""
        return Pairwise(self.constant, self.alone)

    def add(self, name: str, bits: int, value: float) -> None:
        """Add to a term of one choice.

        Args:
            name (str): Name of the choice.
            bits (int): Bits for which the value counts.
            value (float): What is added.
        """
        terms = self.alone.setdefault(name, {})
        terms[bits] = terms.get(bits, 0.0) + value

    def add_pair(
        self, names: tuple[str, str], bits: tuple[int, int], value: float
    ) -> None:
        """Add to a term of two choices.

        Args:
            names (tuple[str, str]): Names of the choices, in either order.
            bits (tuple[int, int]): Bits of both for which the value counts.
            value (float): What is added.
        """
        if names[::-1] in self.pairs:
            names, bits = names[::-1], bits[::-1]
        table = self.pairs.setdefault(names, {})
        table[bits] = table.get(bits, 0.0) + value

    def update(self, other: Pairwise) -> None:
        """Add another function, which shares no terms with this one."""
        self.constant += other.constant
        self.alone.update(other.alone)
        self.pairs.update(other.pairs)

    def bounded(self) -> Pairwise:
        """Return the function with a lower bound for each pair.

        Where errors are large, two of them often do little more harm than
        one, and the sum of many such pairs would be negative. Here a pair of
        ``n`` choices that all interact subtracts at most ``2 / n`` of the
        smaller of its two terms: then the sum is never below the largest
        term of one choice. (With these terms in descending order, ``k`` of
        them count ``k - k (k - 1) / n >= 1`` together.)
        """
        interacting: dict[str, int] = {}
        for pair in self.pairs:
            for name in pair:
                interacting[name] = interacting.get(name, 0) + 1
        result = Pairwise(self.constant, self.alone)
        for (one, two), table in self.pairs.items():
            n = 1 + max(interacting[one], interacting[two])
            for (a, b), value in table.items():
                smaller = min(self.alone[one][a], self.alone[two][b])
                value = max(value, -(2 / n) * smaller)
                result.add_pair((one, two), (a, b), value)
        return result

    def restricted(
        self,
        leaders: Mapping[str, str],
        bit_widths: Mapping[str, Iterable[int]],
    ) -> Pairwise:
        """Return the function where choices share their bits.

        Args:
            leaders (dict[str, str]): For each choice the one whose bits it
                takes: itself, if it is free.
            bit_widths (dict[str, tuple]): Bits that each leader may have.

        Returns:
            Pairwise: A function of the leaders alone, for these bits.
        """
        result = Pairwise(self.constant)
        for name, terms in self.alone.items():
            for bits in bit_widths[leaders[name]]:
                result.add(leaders[name], bits, terms[bits])
        for (first, second), table in self.pairs.items():
            one, two = leaders[first], leaders[second]
            if one == two:
                for bits in bit_widths[one]:
                    result.add(one, bits, table[bits, bits])
                continue
            for a in bit_widths[one]:
                for b in bit_widths[two]:
                    result.add_pair((one, two), (a, b), table[a, b])
        return result
