"""What there is to choose: the widths of weights, and of activations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import chain
from typing import Annotated, Literal, Optional, Union

from pydantic import Field

from ..algorithms import BRECQ
from ..graph import Door
from ..validation import Bits, Config, validated

KINDS = ('weight', 'activation')

#: An allowed width, several, or either by kind.
SomeBits = Union[Bits, Sequence[Bits]]


@dataclass
class AllowedByKind:
    """Allowed widths of a layer's weight, its input, or both."""

    weight: Optional[SomeBits] = None
    activation: Optional[SomeBits] = None


Allowed = Union[SomeBits, Annotated[dict, Config(AllowedByKind)]]


@dataclass(frozen=True)
class Choice:
    """One width to choose.

    Attributes:
        kind (str): ``weight`` or ``activation``.
        unit (str): Name of the unit.
        layers (tuple[str]): The layer; of an activation that several
            layers of the unit take, all of them.
        place (int, optional): Which of the unit's input tensors it is, of
            an activation that is quantized at the unit's door.
    """

    kind: str
    unit: str
    layers: tuple[str, ...]
    place: Optional[int] = None

    @property
    def name(self) -> str:
        """Such as ``backbone.layer1.0.conv1.weight``."""
        return f'{self.layers[0]}.{self.kind}'


def choice_of(
    choices: Sequence[Choice], kind: str, layer: str
) -> Optional[Choice]:
    """The choice that decides a layer's width, if there is one."""
    return next(
        (c for c in choices if c.kind == kind and layer in c.layers), None
    )


@validated
@dataclass
class SearchSpace:
    """Which widths are searched, and what a device or a user asks for.

    What ``quantization.first_last_bits`` and ``quantization.bit_overrides``
    decide stays as it is: it is no choice.

    Args:
        bits (list[int]): Bit widths to choose from, 2 to 8.
        kinds (list[str]): What is searched: ``weight``, ``activation`` or
            both; the other keeps the width of ``quantization``.
        allowed (dict): By layer name or pattern of :mod:`fnmatch`, the
            width or widths that a layer may have, or ``dict(weight=...,
            activation=...)`` with either key. All that match hold.
        shared (list[list[str]]): Groups of names or patterns: all layers
            that a group matches take one width.
    """

    bits: Annotated[
        Sequence[Bits],
        Field(min_length=2, description='two or more widths from 2 to 8'),
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
                'more widths from 2 to 8'
            )

    def widths(self, choices: Sequence[Choice]) -> dict[str, tuple[int, ...]]:
        """The widths that each choice may have.

        Args:
            choices (list[Choice]): The choices.

        Raises:
            ValueError: If a pattern matches no layer, or nothing is left.
        """
        widths = {choice.name: tuple(self.bits) for choice in choices}
        for pattern, value in self.allowed.items():
            by_kind = (
                value
                if isinstance(value, Mapping)
                else dict.fromkeys(self.kinds, value)
            )
            if not set(by_kind) <= set(self.kinds):
                raise ValueError(
                    f'mixed_precision.allowed[{pattern!r}] has the keys '
                    f'{sorted(by_kind)}, and searched is only '
                    f'{" and ".join(self.kinds)} (`mixed_precision.kinds`)'
                )
            found = self._matches(choices, pattern, 'allowed')
            for choice in found:
                only = by_kind.get(choice.kind)
                if only is None:
                    continue
                few = {only} if isinstance(only, int) else set(only)
                left = tuple(b for b in widths[choice.name] if b in few)
                if not left:
                    raise ValueError(
                        f'mixed_precision.allowed[{pattern!r}]={value!r} '
                        f'leaves no width for {choice.name}, which may have '
                        f'{widths[choice.name]}: change it or '
                        '`mixed_precision.bits`'
                    )
                widths[choice.name] = left
        return widths

    def leaders(self, choices: Sequence[Choice]) -> dict[str, str]:
        """For each choice, by name, the one whose width it takes."""
        leaders = {choice.name: choice.name for choice in choices}
        for group in self.shared:
            members = [
                choice
                for pattern in group
                for choice in self._matches(choices, pattern, 'shared')
            ]
            for kind in KINDS:
                names = [leaders[c.name] for c in members if c.kind == kind]
                for name, leader in leaders.items():
                    if leader in names:
                        leaders[name] = names[0]
        return leaders

    def common(
        self, choices: Sequence[Choice]
    ) -> tuple[dict[str, str], dict[str, tuple[int, ...]]]:
        """Leaders, and the widths that each may have with all who follow.

        Raises:
            ValueError: If those that share a width have none in common.
        """
        leaders, widths = self.leaders(choices), self.widths(choices)
        common: dict[str, tuple[int, ...]] = {}
        for name, leader in leaders.items():
            before = common.get(leader, widths[name])
            common[leader] = tuple(b for b in before if b in widths[name])
            if not common[leader]:
                raise ValueError(
                    f'{name} shares its width with {leader} by '
                    '`mixed_precision.shared`, and `mixed_precision.allowed` '
                    'leaves them none in common'
                )
        return leaders, common

    def _matches(
        self, choices: Sequence[Choice], pattern: str, key: str
    ) -> list[Choice]:
        found = [
            choice
            for choice in choices
            if any(fnmatchcase(name, pattern) for name in choice.layers)
        ]
        if not found:
            layers = dict.fromkeys(n for c in choices for n in c.layers)
            raise ValueError(
                f'{pattern!r} in `mixed_precision.{key}` matches no layer '
                f'whose width is searched; these are {", ".join(layers)}'
            )
        return found


def find_choices(
    models: Mapping[int, BRECQ], kinds: Sequence[str]
) -> list[Choice]:
    """What is free in a model.

    Args:
        models (dict[int, BRECQ]): Prepared models, by the width that all
            layers have but those that the config decides.
        kinds (list[str]): What is searched.

    Returns:
        list[Choice]: In the order of the units.

    Raises:
        ValueError: If nothing is free.
    """

    def free(layer: str, kind: str) -> bool:
        place = KINDS.index(kind)
        return all(m.bits[layer][place] == b for b, m in models.items())

    choices: list[Choice] = []
    units = next(iter(models.values())).units
    for unit in chain.from_iterable(unit.parts for unit in units):
        if 'weight' in kinds:
            choices += [
                Choice('weight', unit.name, (layer,))
                for layer in unit.layers
                if free(layer, 'weight')
            ]
        if 'activation' not in kinds:
            continue
        at_door: set[str] = set()
        door = getattr(unit.module, 'door', None)
        if isinstance(door, Door):
            for place, readers in door.readers.items():
                at_door.update(readers)
                if all(free(layer, 'activation') for layer in readers):
                    choices.append(
                        Choice('activation', unit.name, readers, place)
                    )
        choices += [
            Choice('activation', unit.name, (layer,))
            for layer in unit.layers
            if layer not in at_door and free(layer, 'activation')
        ]
    if not choices:
        raise ValueError(
            'No layer is free: `quantization.first_last_bits` and '
            '`quantization.bit_overrides` decide all widths'
        )
    return choices
