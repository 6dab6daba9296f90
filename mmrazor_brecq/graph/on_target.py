"""Make a quantization keep to what a device allows, before it begins.

Where a device leaves one choice, the scheme takes it, and that is said; what
a user asks for and the device cannot do is refused.
"""

from __future__ import annotations

import glob
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any, Optional

from mmengine.logging import print_log

from ..layers import kind_of
from ..targets import Description
from .ends import end_layers
from .prepare import FLOAT, QuantizationScheme
from .record import Recording

SIDES = 'weight', 'activation'
#: Settings that a device may decide, and their defaults.
SETTINGS = dict(symmetric=False, per_channel=True)
#: The argument of the API that sets each key.
ARGUMENTS = {
    'weight.bits': 'weight_bits',
    'activation.bits': 'activation_bits',
    'activation': 'activation_bits',
    'weight.symmetric': 'symmetric',
    'activation.symmetric': 'symmetric',
    'quantize_shortcuts': 'quantize_shortcuts',
    'bit_overrides': 'bit_overrides',
}


def suit(
    scheme: QuantizationScheme,
    target: Description,
    recording: Recording,
    given: Collection[str],
) -> QuantizationScheme:
    """Return a scheme that keeps to what a device allows.

    Args:
        scheme (QuantizationScheme): What the user asks for.
        target (Description): The device.
        recording (Recording): A recorded pass of the network.
        given (set[str]): The settings that the user gave: only others change.

    Returns:
        QuantizationScheme: The settings to use. What differs is logged.

    Raises:
        ValueError: If the device cannot do what the user asks for. The
            message has the value, what is allowed and the key.
    """
    layers = {
        uses[0].name: kind_of(module)
        for module, uses in recording.by_module().items()
        if recording.could_be_layer(module)
    }
    if not layers:
        return scheme
    fit = _Fit(scheme, target, layers, end_layers(recording), given)
    for step in (
        fit.leave_float,
        fit.suit_activation,
        fit.suit_settings,
        fit.suit_shortcuts,
        fit.suit_bits,
    ):
        step()
    for line in fit.said:
        print_log(f'{target.title}: {line}', 'current')
    return fit.scheme


class _Fit:
    """One scheme on its way to what a device allows.

    Args:
        scheme (QuantizationScheme): What the user asks for.
        target (Description): The device.
        layers (dict[str, str]): Kinds of all layers, by name.
        ends (list[str]): Names of the first and the last layers.
        given (set[str]): Names of the settings that the user gave.
    """

    def __init__(
        self,
        scheme: QuantizationScheme,
        target: Description,
        layers: Mapping[str, str],
        ends: Sequence[str],
        given: Collection[str],
    ) -> None:
        self.scheme = scheme
        self.target = target
        self.layers = layers
        self.ends = ends
        self.given = given
        self.said: list[str] = []

    def leave_float(self) -> None:
        """Leave what the device does not compute in low precision in float."""
        missing: dict[str, list[str]] = {}
        for name in self._quantized():
            kind = self.layers[name]
            if self.target.limits(kind, 'activation') is None:
                missing.setdefault(kind, []).append(name)
        for kind, names in missing.items():
            self._override(dict.fromkeys(names))
            self.said.append(
                f'{_few(names)} left in float, for it computes no {kind} in '
                'low precision'
            )

    def suit_activation(self) -> None:
        """Settle whether activations are quantized at all."""
        allowed = self._allowed('activation', 'bits')
        if self.scheme.activation is None:
            for bits, kind in allowed:
                if FLOAT not in bits:
                    raise self._refusal(
                        'activation', None, f'inputs of {kind} with', bits
                    )
        elif allowed and all(set(bits) == {FLOAT} for bits, _ in allowed):
            if 'activation' in self.given:
                bits = self.scheme.activation.get('bits', 8)
                raise self._refusal(
                    'activation.bits', bits, 'inputs in', [FLOAT]
                )
            self.scheme = replace(self.scheme, activation=None)
            self.said.append('activations stay in float')

    def suit_settings(self) -> None:
        """Settle symmetry, and whether each channel has a scale."""
        for side in self._sides():
            for key, default in SETTINGS.items():
                wanted: dict[bool, str] = {}
                for value, kind in self._allowed(side, key):
                    if value is not None:
                        wanted.setdefault(value, kind)
                if len(wanted) > 1:
                    raise ValueError(
                        f'{self.target.title} wants {side}.{key} to be True '
                        f'for {wanted[True]} and False for {wanted[False]}, '
                        'and one network has one of them: leave layers of '
                        'one kind in float with `bit_overrides`, or change '
                        "the target's description"
                    )
                for value, kind in wanted.items():
                    self._set(side, key, default, value, kind)

    def _set(
        self, side: str, key: str, default: bool, value: bool, kind: str
    ) -> None:
        """Give the quantizers of a side the one value that will do."""
        config = getattr(self.scheme, side)
        if config.get(key, default) == value:
            return
        path = f'{side}.{key}'
        if key in config:
            raise ValueError(
                f'{_key(path)}={config[key]}, and {self.target.title} takes '
                f'{side}s of {kind} with {key}={value} alone: leave it out, '
                f'or set it to {value}'
            )
        changed: dict[str, Any] = {side: dict(config, **{key: value})}
        self.scheme = replace(self.scheme, **changed)
        self.said.append(
            f'model.quantization.{path}={value}, the one choice it has'
        )

    def suit_shortcuts(self) -> None:
        """Settle what residual adds take."""
        wanted = self.target.quantize_shortcuts
        if wanted in (None, self.scheme.quantize_shortcuts):
            return
        if 'quantize_shortcuts' in self.given:
            raise ValueError(
                f'{_key("quantize_shortcuts")}='
                f'{self.scheme.quantize_shortcuts}, and {self.target.title} '
                f'takes {wanted} alone for its residual adds: leave it out'
            )
        self.scheme = replace(self.scheme, quantize_shortcuts=wanted)
        self.said.append(f'model.quantization.quantize_shortcuts={wanted}')

    def suit_bits(self) -> None:
        """Settle the bit widths of all layers."""
        found: dict[str, dict[str, int]] = {}
        for side in self._sides():
            changed: dict[tuple[str, int, int], list[str]] = {}
            for name, pair in self._bits().items():
                kind, bits = self.layers[name], pair[SIDES.index(side)]
                limits = self.target.limits(kind, side)
                if bits is None or limits is None:
                    continue
                key = self._source(name, side)
                if bits not in limits.bits:
                    value = self._choice(key, name, side, bits, limits.bits)
                    found.setdefault(name, {})[side] = value
                    changed.setdefault((kind, bits, value), []).append(name)
            self._check_asked(side, changed)
            self.said += [
                f'{value} bits in place of {bits} for the {side} of '
                f'{_few(names)}'
                for (_, bits, value), names in changed.items()
            ]
        if found:
            self._override(found)

    def _check_asked(
        self, side: str, changed: Mapping[tuple[str, int, int], Any]
    ) -> None:
        """Refuse bits that a user asks for and that no layer can have."""
        bits = getattr(self.scheme, side).get('bits')
        values = {value for _, before, value in changed if before == bits}
        kinds = self._allowed(side, 'bits')
        possible = any(bits in allowed for allowed, _ in kinds)
        if values and side in self.given and not possible:
            raise self._refusal(
                f'{side}.bits', bits, f'{side}s of this network with', values
            )

    def _choice(
        self, key: str, name: str, side: str, bits: int, allowed: Sequence[int]
    ) -> int:
        """Return the bits to use in place of others, if they are given.

        Raises:
            ValueError: If there are several, or the user named the layer.
        """
        choices = sorted({b for b in allowed if b != FLOAT}) or [FLOAT]
        general = getattr(self.scheme, side).get('bits', 8)
        if len(choices) == 1 and not key.startswith('bit_overrides'):
            return choices[0]
        if key == 'first_last_bits' not in self.given and general in choices:
            return general
        kind = self.layers[name]
        shown = None if bits == FLOAT else bits
        raise self._refusal(
            key, shown, f'{side}s of {kind} such as {name!r} with', allowed
        )

    def _refusal(
        self, path: str, value: object, what: str, allowed: Iterable[int]
    ) -> ValueError:
        """Return the error for a value that the device does not take."""
        return ValueError(
            f'{_key(path)}={value}, and {self.target.title} takes {what} '
            f'{bits_in_words(allowed)} alone: change '
            f'`model.quantization.{path}`'
            + (
                ''
                if path.startswith('bit_overrides')
                else ', or name other bits for such layers in '
                '`model.quantization.bit_overrides`'
            )
        )

    def _source(self, layer: str, side: str) -> str:
        """Return the key of the scheme that decides the bits of a layer."""
        for pattern, value in reversed(self.scheme.bit_overrides.items()):
            if fnmatchcase(layer, pattern) and (
                not isinstance(value, Mapping) or side in value
            ):
                return f'bit_overrides[{pattern!r}]'
        if layer in self.ends and self.scheme.first_last_bits is not None:
            return 'first_last_bits'
        return f'{side}.bits'

    def _override(self, more: Mapping[str, Any]) -> None:
        """Add bit widths of layers, the last of which count."""
        overrides, bits = dict(self.scheme.bit_overrides), self._bits()
        for name, value in more.items():
            pattern = glob.escape(name)
            if value is not None and overrides.pop(pattern, None) is not None:
                both = {s: b for s, b in zip(SIDES, bits[name]) if b}
                value = {**both, **value}
            overrides.pop(pattern, None)
            overrides[pattern] = value
        self.scheme = replace(self.scheme, bit_overrides=overrides)

    def _bits(self) -> dict[str, tuple[Optional[int], int]]:
        """Return the bits of weight and input of all layers."""
        products = [n for n, kind in self.layers.items() if kind == 'product']
        return self.scheme.bits(list(self.layers), list(self.ends), products)

    def _quantized(self) -> list[str]:
        """Return the layers that the scheme does not leave in float."""
        floats = self.scheme.activation is None
        return [
            name
            for name, (weight, activation) in self._bits().items()
            if (activation if weight is None else weight) != FLOAT
            and not (weight is None and floats)
        ]

    def _sides(self) -> list[str]:
        return [s for s in SIDES if getattr(self.scheme, s) is not None]

    def _allowed(self, side: str, field: str) -> list[tuple[Any, str]]:
        """Return what each kind that is quantized allows, and the kind."""
        kinds = sorted({self.layers[name] for name in self._quantized()})
        limits = [
            (self.target.limits(kind, side), kind)
            for kind in kinds
            if (kind, side) != ('product', 'weight')
        ]
        return [(getattr(x, field, None), kind) for x, kind in limits if x]


def _key(path: str) -> str:
    """Return a key as a config and as the API have it."""
    argument = ARGUMENTS.get(path.partition('[')[0])
    also = f' (`{argument}`)' if argument else ''
    return f'model.quantization.{path}{also}'


def bits_in_words(bits: Iterable[int]) -> str:
    """Return bit widths in words, such as ``4 or 8 bits``."""
    some = sorted({b for b in bits if b != FLOAT})
    words = [', '.join(map(str, some[:-1])), *map(str, some[-1:])]
    text = ' or '.join(word for word in words if word)
    parts = [f'{text} bits'] if text else []
    return ' or '.join(parts + ['float'] * (FLOAT in bits))


def _few(names: Sequence[str]) -> str:
    """Return the first of some names, and how many more there are."""
    more = f' and {len(names) - 1} more' if len(names) > 1 else ''
    return f'{names[0]!r}{more}'
