"""Find what there is to choose: the bits of weights and of activations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Optional

from ..algorithms import BRECQ
from ..graph import Door, Unit

KINDS = ('weight', 'activation')


@dataclass(frozen=True)
class Choice:
    """One bit width to choose.

    Attributes:
        kind (str): ``weight`` or ``activation``.
        unit (str): Name of the unit.
        layers (tuple[str]): Name of the layer; for an activation, of all
            layers of the unit that take it.
        position (int, optional): For an activation that is quantized at the
            unit's door, its position among the unit's input tensors.
    """

    kind: str
    unit: str
    layers: tuple[str, ...]
    position: Optional[int] = None

    @property
    def name(self) -> str:
        """Return a name, such as ``backbone.layer1.0.conv1.weight``."""
        return f'{self.layers[0]}.{self.kind}'


def choice_of(
    choices: Sequence[Choice], kind: str, layer: str
) -> Optional[Choice]:
    """Return the choice that decides the bits of a layer, if there is one.

    Args:
        choices (list[Choice]): All choices.
        kind (str): ``weight`` or ``activation``.
        layer (str): Name of the layer.
    """
    return next(
        (c for c in choices if c.kind == kind and layer in c.layers), None
    )


def find_choices(
    models: Mapping[int, BRECQ], kinds: Sequence[str]
) -> list[Choice]:
    """Find the bits that a config leaves free.

    Args:
        models (dict[int, BRECQ]): Prepared models, by the bits that all
            layers have except those that the config decides.
        kinds (list[str]): What is searched: ``weight``, ``activation`` or
            both.

    Returns:
        list[Choice]: In the order of the units.

    Raises:
        ValueError: If nothing is free.
    """

    def is_free(layer: str, kind: str) -> bool:
        index = KINDS.index(kind)
        return all(m.bits[layer][index] == b for b, m in models.items())

    choices: list[Choice] = []
    units = next(iter(models.values())).units
    for unit in chain.from_iterable(unit.parts for unit in units):
        if 'weight' in kinds:
            choices += [
                Choice('weight', unit.name, (layer,))
                for layer in unit.layers
                if is_free(layer, 'weight')
            ]
        if 'activation' in kinds:
            choices += [
                choice
                for choice in _activations(unit)
                if all(is_free(name, 'activation') for name in choice.layers)
            ]
    if not choices:
        raise ValueError(
            'No layer is free: `model.quantization.first_last_bits` and '
            '`model.quantization.bit_overrides` decide the bits of all '
            'layers. Remove entries of `bit_overrides`, or set '
            '`first_last_bits=None`, for the layers whose bits are to be '
            'searched'
        )
    return choices


def _activations(unit: Unit) -> list[Choice]:
    """Return the quantized activations of a unit, those at its door first.

    Args:
        unit (Unit): Of a prepared model.
    """
    door = getattr(unit.module, 'door', None)
    readers = door.readers if isinstance(door, Door) else {}
    choices = [
        Choice('activation', unit.name, layers, position)
        for position, layers in readers.items()
    ]
    at_door = set(chain.from_iterable(readers.values()))
    return choices + [
        Choice('activation', unit.name, (layer,))
        for layer in unit.layers
        if layer not in at_door
    ]
