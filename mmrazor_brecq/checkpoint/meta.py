"""Check the metadata of a checkpoint before a network is built from it.

A file contains values, and names of partitions, observers and roundings that
this package, or code that the user has imported, has registered already.
Nothing is imported because a file names it.
"""

from __future__ import annotations

import math
import typing
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Optional

from ..graph import PartitionConfig, QuantizationConfig, QuantizationScheme
from ..registry import SCOPE
from ..validation import Config

#: A class or a function that is registered.
Part = Callable[..., object]

#: Limits of the metadata: levels, letters of a text, and values in all.
MAX_DEPTH, MAX_LETTERS, MAX_VALUES = 16, 10_000, 2**20


def abbreviate(value: object) -> str:
    """Return the representation of a value, in at most 80 letters."""
    text = repr(value)
    return text if len(text) <= 80 else f'{text[:77]}...'


def check_meta(meta: object) -> None:
    """Check that metadata are plain Python and have the expected form.

    :func:`check_names` looks up the names in them.

    Args:
        meta (dict): The metadata of a file.

    Raises:
        ValueError: If they are not, with the key.
    """
    if not isinstance(meta, dict):
        raise _unexpected('meta', meta, 'a dict')
    _check_plain(meta)
    for key, check in _CHECKS.items():
        if meta.get(key) is not None:
            check(f'meta.{key}', meta[key])


def check_names(meta: Mapping[str, Any]) -> None:
    """Check that all parts of the described model are registered.

    The constructors of these parts check their values.

    Args:
        meta (dict): Metadata that passed :func:`check_meta`.

    Raises:
        ValueError: If the quantization is missing, or a name is not
            registered, or is registered for another kind of part.
    """
    if meta.get('quantization') is None:
        raise ValueError(
            'meta.quantization is missing: load it with the config of its '
            'run in place of the network'
        )
    for key, hint in (
        ('quantization', QuantizationConfig),
        ('partition', PartitionConfig),
    ):
        if meta.get(key) is not None:
            _check_config(f'meta.{key}', meta[key], _mark(hint))


def _check_config(key: str, value: object, mark: Optional[Config]) -> None:
    """Refuse a config of a part that is not registered, at any depth.

    Args:
        key (str): The key of the config, from the outermost key down.
        value (object): The config.
        mark (Config, optional): The kind of part that it has to describe.
            Without it, it may contain configs of any registered parts.

    Raises:
        ValueError: If it describes another part.
    """
    if mark is None:
        _check_parts(key, value)
        return
    if isinstance(value, str) and mark.registry is not None:
        value = dict(type=value)
    if not isinstance(value, dict):  # The constructor checks it.
        return
    part: Part = mark.base
    if mark.registry is not None:
        given = value.get('type', mark.default)
        registered = _registered(given, [mark])
        if registered is None:
            raise _unknown(key, given, mark.base.__name__)
        part = registered
    marks = _marks(part)
    for name, item in value.items():
        if name.startswith('_'):
            raise ValueError(f'{key}.{name:.80} is no argument of a part')
        if name != 'type' or mark.registry is None:
            _check_config(f'{key}.{name:.80}', item, marks.get(name))


def _check_parts(key: str, value: object) -> None:
    """Refuse configs of unregistered parts in a value of unknown kind."""
    if isinstance(value, (list, tuple)):
        for item in value:
            _check_parts(key, item)
    elif isinstance(value, dict):
        if isinstance(value.get('type'), str):
            if _registered(value['type'], _all_marks()) is None:
                raise _unknown(key, value['type'], 'part')
            if any(name.startswith('_') for name in value):
                raise ValueError(f'{key} has an argument that no part has')
        for name, item in value.items():
            _check_parts(f'{key}.{name:.80}', item)


def _unknown(key: str, given: object, kind: str) -> ValueError:
    """Return the error about a part that is not registered."""
    return ValueError(
        f'{key}.type={abbreviate(given)} is no registered {kind}, and '
        'nothing is imported because a file names it: if it is yours, '
        'import the code that registers it first'
    )


def _registered(given: object, marks: list[Config]) -> Optional[Part]:
    """Return the part of a name, with or without the scope of this package."""
    name = given.removeprefix(f'{SCOPE}.') if isinstance(given, str) else '.'
    found = [] if '.' in name else [m.registered(name) for m in marks]
    return next((part for part in found if part is not None), None)


def _all_marks() -> list[Config]:
    """Return the kinds of parts in a scheme or a partition."""
    marks = [m for m in _marks(QuantizationScheme).values() if m is not None]
    inside = [x for m in marks for x in _marks(m.base).values()]
    partition = _mark(PartitionConfig)
    return [m for m in (partition, *inside) if m is not None]


def _marks(part: Part) -> dict[str, Optional[Config]]:
    """Return the kind of part that each argument of a class describes."""
    plain = isinstance(part, type) and not is_dataclass(part)
    try:
        hints = typing.get_type_hints(
            part.__init__ if plain else part, include_extras=True
        )
    except Exception:  # A user's hint may exist for type checkers only.
        return {}
    return {name: _mark(hint) for name, hint in hints.items()}


def _mark(hint: Any) -> Optional[Config]:
    """Return the kind of part that a type hint describes, None for none."""
    for annotation in getattr(hint, '__metadata__', ()):
        if isinstance(annotation, Config):
            return annotation
    if typing.get_origin(hint) is typing.Union:
        inside = map(_mark, typing.get_args(hint))
        return next((mark for mark in inside if mark is not None), None)
    return None


def _check_plain(value: object, key: str = 'meta') -> None:
    """Refuse values that JSON does not know, and too many or too deep ones."""
    left = MAX_VALUES
    stack = [(value, key, 0)]
    while stack:
        value, key, depth = stack.pop()
        left -= 1
        if left < 0:
            raise _unexpected(key, '...', f'at most {MAX_VALUES:,} values')
        if depth > MAX_DEPTH:
            raise _unexpected(key, '...', f'at most {MAX_DEPTH} levels')
        if isinstance(value, dict):
            for name, item in value.items():
                if type(name) is not str or len(name) > MAX_LETTERS:
                    expected = f'names of at most {MAX_LETTERS:,} letters'
                    raise _unexpected(key, name, expected)
                stack.append((item, f'{key}.{name:.80}'[:400], depth + 1))
        elif isinstance(value, (list, tuple)):
            stack += [(item, key, depth + 1) for item in value]
        else:
            _check_scalar(key, value)


def _check_scalar(key: str, value: object) -> None:
    """Refuse a value that is no text, number, bool or None of usual size."""
    if type(value) is str:
        if len(value) > MAX_LETTERS:
            raise _unexpected(key, value, f'at most {MAX_LETTERS:,} letters')
    elif type(value) is int:
        if abs(value) >= 2**63:
            raise _unexpected(key, '...', 'an integer of 64 bits')
    elif type(value) is float:
        if not math.isfinite(value):
            raise _unexpected(key, value, 'a finite number')
    elif value is not None and type(value) is not bool:
        raise _unexpected(key, type(value).__name__, 'plain Python')


def _unexpected(key: str, value: object, expected: str) -> ValueError:
    """Return the error about a value that is not the expected one."""
    return ValueError(f'{key}={abbreviate(value)}, expected {expected}')


def _is_bit_width(value: object) -> bool:
    """Return whether a value is a bit width that a quantizer may have."""
    return type(value) is int and 2 <= value <= 8


def _check_scheme(key: str, scheme: object) -> None:
    if not isinstance(scheme, dict):
        raise _unexpected(key, scheme, 'a dict')
    known = [field.name for field in fields(QuantizationScheme)]
    for name in scheme:
        if name not in known:
            raise ValueError(
                f'{key}.{name:.80} is unknown, expected one of '
                f'{", ".join(known)}'
            )


def _check_bits(key: str, bits: object) -> None:
    if not isinstance(bits, dict):
        raise _unexpected(key, bits, 'a dict')
    for name, pair in bits.items():
        if not (
            isinstance(pair, (list, tuple))
            and len(pair) == 2
            and (pair[0] is None or _is_bit_width(pair[0]))
            and (pair[1] in (None, 16) or _is_bit_width(pair[1]))
        ):
            expected = 'two bit widths from 2 to 8, or 16 of an input'
            raise _unexpected(f'{key}.{name:.80}', pair, expected)


def _check_texts(key: str, value: object) -> None:
    if not isinstance(value, (list, tuple)) or not all(
        type(item) in (str, int) for item in value
    ):
        raise _unexpected(key, value, 'a list of names')


def _check_identity(key: str, value: object) -> None:
    if not isinstance(value, dict) or not all(
        type(item) is str for item in value.values()
    ):
        raise _unexpected(key, value, 'a dict of fingerprints')


def _check_partition(key: str, value: object) -> None:
    if not isinstance(value, (dict, str)):
        raise _unexpected(key, value, 'a dict with `type`')


def _check_text(key: str, value: object) -> None:
    if type(value) is not str:
        raise _unexpected(key, value, 'a text')


_CHECKS: dict[str, Callable[[str, object], None]] = dict(
    quantization=_check_scheme,
    partition=_check_partition,
    bits=_check_bits,
    classes=_check_texts,
    unfitted=_check_texts,
    identity=_check_identity,
    mmrazor_brecq=_check_text,
)
