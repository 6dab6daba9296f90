"""What a file says of its network, checked before anything is made of it.

A file holds values and names out of a closed set: those of partitions,
observers and roundings that are registered here already, by this package or
by code that a user has imported. Nothing is imported because a file names
it.
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

DEEPEST, LONGEST, MOST = 16, 10_000, 2**20


def short(value: Any) -> str:
    """A value as a message shows it."""
    text = repr(value)
    return text if len(text) <= 80 else f'{text[:77]}...'


def check_meta(meta: Any) -> None:
    """See that it is plain, and of the form that :func:`encode` was given.

    What it names is not looked up; see :func:`check_names`.

    Args:
        meta (dict): Of a file.

    Raises:
        ValueError: If it is not, with the key.
    """
    _expect(isinstance(meta, dict), 'meta', meta, 'a dict')
    _check_plain(meta)
    for key, check in _CHECKS.items():
        if meta.get(key) is not None:
            check(f'meta.{key}', meta[key])


def check_names(meta: Mapping[str, Any]) -> None:
    """See that what a model would be built of is registered already.

    The values are judged by what is built of them.

    Args:
        meta (dict): What :func:`check_meta` let pass.

    Raises:
        ValueError: If it lacks the quantization, or names something that is
            not registered, or is of another kind.
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


def _check_config(where: str, value: Any, mark: Optional[Config]) -> None:
    """Refuse a config of what is not registered, at any depth.

    Args:
        where (str): Where it stands.
        value (Any): What stands there.
        mark (Config, optional): What it is to be a config of; without one
            any config in it has to be of something registered here.

    Raises:
        ValueError: If it names something else.
    """
    if mark is None:
        _check_parts(where, value)
        return
    if isinstance(value, str) and mark.registry is not None:
        value = dict(type=value)
    if not isinstance(value, dict):  # A number, or what will be refused.
        return
    part: Any = mark.base
    if mark.registry is not None:
        given = value.get('type', mark.default)
        part = _registered(given, [mark])
        if part is None:
            raise _unknown(where, given, mark.base.__name__)
    marks = _marks(part)
    for key, item in value.items():
        if key.startswith('_'):
            raise ValueError(f'{where}.{key:.80} is no argument of a part')
        if key != 'type' or mark.registry is None:
            _check_config(f'{where}.{key:.80}', item, marks.get(key))


def _check_parts(where: str, value: Any) -> None:
    """Refuse configs of what is not registered in what has no type."""
    if isinstance(value, (list, tuple)):
        for item in value:
            _check_parts(where, item)
    elif isinstance(value, dict):
        if isinstance(value.get('type'), str):
            if _registered(value['type'], _everything()) is None:
                raise _unknown(where, value['type'], 'part')
            if any(key.startswith('_') for key in value):
                raise ValueError(f'{where} has an argument that no part has')
        for key, item in value.items():
            _check_parts(f'{where}.{key:.80}', item)


def _unknown(where: str, given: Any, kind: str) -> ValueError:
    return ValueError(
        f'{where}.type={short(given)} is no registered {kind}, and what a '
        'file names is not imported: if it is yours, import the code that '
        'registers it first'
    )


def _registered(given: Any, marks: list[Config]) -> Any:
    """What is registered under a name, without or with our scope."""
    name = given.removeprefix(f'{SCOPE}.') if isinstance(given, str) else '.'
    found = [] if '.' in name else [m.registered(name) for m in marks]
    return next((part for part in found if part is not None), None)


def _everything() -> list[Config]:
    """Kinds of parts that a scheme or a partition may have inside."""
    marks = [m for m in _marks(QuantizationScheme).values() if m is not None]
    inside = [x for m in marks for x in _marks(m.base).values()]
    partition = _mark(PartitionConfig)
    return [m for m in (partition, *inside) if m is not None]


def _marks(part: Any) -> dict[str, Optional[Config]]:
    """What the arguments of a class are configs of."""
    plain = isinstance(part, type) and not is_dataclass(part)
    try:
        hints = typing.get_type_hints(
            part.__init__ if plain else part, include_extras=True
        )
    except Exception:  # Of a user's own: a name of type checkers alone.
        return {}
    return {name: _mark(hint) for name, hint in hints.items()}


def _mark(hint: Any) -> Optional[Config]:
    """What a type says that is a config of, optional or not."""
    for found in getattr(hint, '__metadata__', ()):
        if isinstance(found, Config):
            return found
    if typing.get_origin(hint) is typing.Union:
        inside = map(_mark, typing.get_args(hint))
        return next((mark for mark in inside if mark is not None), None)
    return None


def _check_plain(value: Any, where: str = 'meta') -> None:
    """Refuse what JSON does not know, and what is too much of it."""
    left = MOST
    stack = [(value, where, 0)]
    while stack:
        value, where, depth = stack.pop()
        left -= 1
        _expect(left >= 0, where, '...', f'at most {MOST:,} values in all')
        _expect(depth <= DEEPEST, where, '...', f'{DEEPEST} levels at most')
        if isinstance(value, dict):
            for key, item in value.items():
                _expect(
                    type(key) is str and len(key) <= LONGEST,
                    where,
                    key,
                    f'names of at most {LONGEST:,} letters',
                )
                stack.append((item, f'{where}.{key:.80}'[:400], depth + 1))
        elif isinstance(value, (list, tuple)):
            stack += [(item, where, depth + 1) for item in value]
        elif type(value) is str:
            few = len(value) <= LONGEST
            _expect(few, where, value, f'at most {LONGEST:,} letters')
        elif type(value) is int:
            _expect(abs(value) < 2**63, where, '...', 'an integer of 64 bits')
        elif type(value) is float:
            _expect(math.isfinite(value), where, value, 'a finite number')
        else:
            plain = value is None or type(value) is bool
            _expect(plain, where, type(value).__name__, 'plain Python')


def _expect(fits: bool, where: str, value: Any, expected: str) -> None:
    if not fits:
        raise ValueError(f'{where}={short(value)}, expected {expected}')


def _is_width(value: Any) -> bool:
    return type(value) is int and 2 <= value <= 8


def _check_scheme(where: str, scheme: Any) -> None:
    _expect(isinstance(scheme, dict), where, scheme, 'a dict')
    known = [field.name for field in fields(QuantizationScheme)]
    for key in scheme:
        if key not in known:
            raise ValueError(
                f'{where}.{key:.80} is unknown, expected one of '
                f'{", ".join(known)}'
            )


def _check_bits(where: str, bits: Any) -> None:
    _expect(isinstance(bits, dict), where, bits, 'a dict')
    for name, pair in bits.items():
        fits = (
            isinstance(pair, (list, tuple))
            and len(pair) == 2
            and _is_width(pair[0])
            and (pair[1] is None or _is_width(pair[1]))
        )
        _expect(fits, f'{where}.{name:.80}', pair, 'two widths of 2 to 8')


def _check_texts(where: str, value: Any) -> None:
    fits = isinstance(value, (list, tuple)) and all(
        type(item) in (str, int) for item in value
    )
    _expect(fits, where, value, 'a list of names')


def _check_identity(where: str, value: Any) -> None:
    fits = isinstance(value, dict) and all(
        type(item) is str for item in value.values()
    )
    _expect(fits, where, value, 'a dict of fingerprints')


def _check_partition(where: str, value: Any) -> None:
    fits = isinstance(value, (dict, str))
    _expect(fits, where, value, 'a dict with `type`')


def _check_text(where: str, value: Any) -> None:
    _expect(type(value) is str, where, value, 'a text')


_CHECKS: dict[str, Callable[[str, Any], None]] = dict(
    quantization=_check_scheme,
    partition=_check_partition,
    bits=_check_bits,
    classes=_check_texts,
    unfitted=_check_texts,
    identity=_check_identity,
    mmrazor_brecq=_check_text,
)
