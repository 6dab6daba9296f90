"""Constraints on the bit widths that a search may choose."""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal, Optional, TypeVar, Union

from pydantic import Field

from ..targets import Description
from ..validation import Bits, Config, validated
from .choices import KINDS, Choice

#: One allowed bit width, or several.
SomeBits = Union[Bits, Sequence[Bits]]


@dataclass
class AllowedByKind:
    """Allowed bit widths of a layer's weight, its input, or both."""

    weight: Optional[SomeBits] = None
    activation: Optional[SomeBits] = None


#: A space, or one with more settings.
Space = TypeVar('Space', bound='SearchSpace')
Allowed = Union[SomeBits, Annotated[dict, Config(AllowedByKind)]]


@validated
@dataclass
class SearchSpace:
    """Bit widths that are searched, and constraints of a device or a user.

    Layers whose bits ``quantization.first_last_bits`` or
    ``quantization.bit_overrides`` decide are not searched.

    Args:
        bits (list[int]): Bit widths to choose from, 2 to 8.
        kinds (list[str]): What is searched: ``weight``, ``activation`` or
            both; the other kind keeps the bits of ``quantization``.
        allowed (dict): By layer name or pattern of :mod:`fnmatch`, the
            bit width or widths that a layer may have, or ``dict(weight=...,
            activation=...)`` with either key. All entries that match hold.
        shared (list[list[str]]): Groups of names or patterns: all layers
            that a group matches take the same bits.

    Example:
        In a config::

            mixed_precision = dict(
                bits=[2, 3, 4, 8],
                allowed={'backbone.layer1.*': [4, 8]},
                shared=[['backbone.layer1.*.conv2']],
            )
    """

    bits: Annotated[
        Sequence[Bits],
        Field(min_length=2, description='two or more bit widths from 2 to 8'),
    ] = (2, 3, 4, 5, 6, 7, 8)
    kinds: Annotated[
        Sequence[Literal['weight', 'activation']], Field(min_length=1)
    ] = ('weight',)
    allowed: dict[str, Allowed] = field(default_factory=dict)
    shared: Sequence[Sequence[str]] = ()

    def __post_init__(self) -> None:
        self.bits = tuple(sorted(set(self.bits)))
        if len(self.bits) < 2:
            raise ValueError(
                f'mixed_precision.bits={list(self.bits)}, expected two or '
                'more bit widths from 2 to 8'
            )

    def on_target(
        self: Space, target: Description, layers: Mapping[str, str]
    ) -> Space:
        """Return a space whose bit widths are those of a device.

        Args:
            target (Description): The device.
            layers (dict[str, str]): Kinds of the layers, by name.

        Raises:
            ValueError: If fewer than two of the bit widths are left.
        """
        allowed = {
            bits
            for kind in set(layers.values())
            for side in self.kinds
            for bits in _bits_on(target, kind, side)
        }
        left = [bits for bits in self.bits if bits in allowed]
        if len(left) < 2:
            raise ValueError(
                f'mixed_precision.bits={list(self.bits)}, and {target.title} '
                f'takes {sorted(allowed)} for the '
                f'{" and the ".join(self.kinds)} of these layers: a search '
                'chooses among two or more, so name such bits, or quantize '
                'without a search'
            )
        return replace(self, bits=left)

    def limited(
        self: Space,
        target: Description,
        choices: Sequence[Choice],
        layers: Mapping[str, str],
    ) -> Space:
        """Return a space where each choice has the bit widths of a device.

        Args:
            target (Description): The device.
            choices (list[Choice]): All choices.
            layers (dict[str, str]): Kinds of the layers, by name.
        """
        allowed: dict[str, Any] = dict(self.allowed)
        for choice in choices:
            for name in choice.layers:
                some = _bits_on(target, layers[name], choice.kind)
                pattern = glob.escape(name)
                before = self._by_kind(pattern, allowed.get(pattern, {}))
                own = before.get(choice.kind, some)
                own = [own] if isinstance(own, int) else own or some
                left = [bits for bits in some if bits in own]
                if not left:
                    raise ValueError(
                        f'mixed_precision.allowed[{pattern!r}]='
                        f'{allowed[pattern]!r}, and {target.title} takes '
                        f'{some} for the {choice.kind} of this layer'
                    )
                allowed[pattern] = {**before, choice.kind: left}
        return replace(self, allowed=allowed)

    def bit_widths(
        self, choices: Sequence[Choice]
    ) -> dict[str, tuple[int, ...]]:
        """Return the bit widths that each choice may have.

        Args:
            choices (list[Choice]): All choices.

        Returns:
            dict[str, tuple[int]]: By the names of the choices.

        Raises:
            ValueError: If a pattern matches no layer, or a choice has no
                bit width left.
        """
        allowed = {choice.name: tuple(self.bits) for choice in choices}
        for pattern, value in self.allowed.items():
            by_kind = self._by_kind(pattern, value)
            for choice in self._matches(choices, pattern, 'allowed'):
                some = by_kind.get(choice.kind)
                if some is None:
                    continue
                before = allowed[choice.name]
                some = (some,) if isinstance(some, int) else some
                allowed[choice.name] = tuple(b for b in before if b in some)
                if not allowed[choice.name]:
                    raise ValueError(
                        f'mixed_precision.allowed[{pattern!r}]={value!r} '
                        f'leaves no bit width for {choice.name}, which may '
                        f'have {before}: change it or `mixed_precision.bits`'
                    )
        return allowed

    def _by_kind(
        self, pattern: str, value: Allowed
    ) -> Mapping[str, Optional[SomeBits]]:
        """Return an entry of ``allowed`` by ``weight`` and ``activation``.

        Raises:
            ValueError: If it has a kind that is not searched.
        """
        if not isinstance(value, Mapping):
            return dict.fromkeys(self.kinds, value)
        if not set(value) <= set(self.kinds):
            raise ValueError(
                f'mixed_precision.allowed[{pattern!r}] has the keys '
                f'{sorted(value)}, and searched is only '
                f'{" and ".join(self.kinds)} (`mixed_precision.kinds`)'
            )
        return value

    def leaders(self, choices: Sequence[Choice]) -> dict[str, str]:
        """Return, for each choice, the name of the one whose bits it takes.

        Args:
            choices (list[Choice]): All choices.

        Returns:
            dict[str, str]: By the names of the choices; one that is free
            leads itself.

        Raises:
            ValueError: If a pattern matches no layer.
        """
        leaders = {choice.name: choice.name for choice in choices}
        for group in self.shared:
            members = [
                choice
                for pattern in group
                for choice in self._matches(choices, pattern, 'shared')
            ]
            for kind in KINDS:
                merged = [leaders[c.name] for c in members if c.kind == kind]
                for name, leader in leaders.items():
                    if leader in merged:
                        leaders[name] = merged[0]
        return leaders

    def common(
        self, choices: Sequence[Choice]
    ) -> tuple[dict[str, str], dict[str, tuple[int, ...]]]:
        """Return the leaders, and the bit widths that each may have.

        Args:
            choices (list[Choice]): All choices.

        Returns:
            tuple[dict, dict]: What :meth:`leaders` returns; and by the name
            of each leader, the bit widths that all who follow it allow.

        Raises:
            ValueError: If choices that share their bits have no bit width
                in common.
        """
        leaders, allowed = self.leaders(choices), self.bit_widths(choices)
        common: dict[str, tuple[int, ...]] = {}
        for name, leader in leaders.items():
            before = common.get(leader, allowed[name])
            common[leader] = tuple(b for b in before if b in allowed[name])
            if not common[leader]:
                raise ValueError(
                    f'{name} shares its bits with {leader} by '
                    '`mixed_precision.shared`, and `mixed_precision.allowed` '
                    'leaves them none in common'
                )
        return leaders, common

    def _matches(
        self, choices: Sequence[Choice], pattern: str, key: str
    ) -> list[Choice]:
        """Return the choices that a pattern matches.

        Args:
            choices (list[Choice]): All choices.
            pattern (str): Name or pattern of layers.
            key (str): Key of the config that has the pattern.

        Raises:
            ValueError: If there are none.
        """
        found = [
            choice
            for choice in choices
            if any(fnmatchcase(name, pattern) for name in choice.layers)
        ]
        if not found:
            layers = dict.fromkeys(n for c in choices for n in c.layers)
            raise ValueError(
                f'{pattern!r} in `mixed_precision.{key}` matches no layer '
                f'whose bits are searched; these are {", ".join(layers)}'
            )
        return found


def _bits_on(target: Description, kind: str, side: str) -> list[int]:
    """Return the bit widths that a device has for an operator."""
    if (kind, side) == ('product', 'weight'):
        return []
    limits = target.limits(kind, side)
    return sorted(b for b in limits.bits if b <= 8) if limits else []
