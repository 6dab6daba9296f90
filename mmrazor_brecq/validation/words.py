"""The words of a refusal: where, what, what was expected, the nearest."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import (
    Annotated,
    Any,
    Literal,
    NamedTuple,
    Union,
    get_args,
    get_origin,
)

#: Characters of a value that a message shows.
SHOWN = 80
UNIONS = (Union, getattr(types, 'UnionType', Union))
NAMES = {
    Any: 'anything',
    bool: 'True or False',
    dict: 'a dict',
    float: 'a number',
    int: 'a whole number',
    list: 'a list',
    str: 'a string',
    tuple: 'a tuple',
    type(None): 'None',
}


class KeyPath(NamedTuple):
    """Where a value was given.

    Attributes:
        path (str): From the outermost key down, such as
            ``model.reconstructor.iterations``; '' at the top.
        owner (str): Who takes it, a class or a function.
    """

    path: str = ''
    owner: str = ''

    def key(self, name: str, owner: str) -> KeyPath:
        """The place of one of its keys."""
        return KeyPath(f'{self.path}.{name}' if self.path else name, owner)

    def item(self, name: Any) -> KeyPath:
        """The place of one of its items."""
        return KeyPath(f'{self.path}[{name!r}]', self.owner)

    def refusal(self, value: Any, expected: str) -> ValueError:
        """The error of a value that is none of those expected."""
        name = self.path.split('.')[-1].split('[')[0]
        cure = f': change `{name}` of {self.owner}' if self.owner else ''
        return ValueError(
            f'{self.path or "value"}={show(value)}, expected {expected}{cure}'
        )

    def unknown(self, name: Any, known: Sequence[str]) -> ValueError:
        """The error of a key that nothing takes."""
        path = self.key(str(name), '').path
        takes = f'takes {", ".join(known)}' if known else 'takes no key'
        return ValueError(
            f'{path} is taken by nothing{nearest(name, known)}: '
            f'{self.owner} {takes}'
        )

    def missing(self, name: str) -> ValueError:
        """The error of a key that has no value."""
        where = self.path or self.owner
        return ValueError(
            f'{where} lacks `{name}`, which {self.owner} needs: add '
            f'`{self.key(name, "").path}`'
        )


def nearest(name: Any, known: Iterable[str]) -> str:
    """A question whether the most similar name is meant, if one is.

    Args:
        name (str): What was written.
        known (iterable | dict): The names that there are; of a dict the
            keys, and its values are how they are to be written.
    """
    shown = known if isinstance(known, Mapping) else {x: x for x in known}
    names = {str(other).lower(): text for other, text in shown.items()}
    close = difflib.get_close_matches(str(name).lower(), names, 1, 0.5)
    return f', did you mean {names[close[0]]!r}?' if close else ''


def show(value: Any) -> str:
    """A value on one line, or what it is if it does not fit on one."""
    if isinstance(value, type):
        return f'the class {value.__name__}'
    text = repr(value)
    if '\n' in text or len(text) > SHOWN:
        shape = getattr(value, 'shape', None)
        size = f' of shape {tuple(shape)}' if shape is not None else ''
        plain = isinstance(value, (int, str, Mapping, list, tuple))
        if plain:
            return f'{text[:SHOWN]}...'.replace('\n', ' ')
        return f'a {type(value).__name__}{size}'
    return text


def describe(hint: Any) -> str:
    """What a type asks for, in words.

    Args:
        hint (Any): A type as it is annotated; the ``description`` of
            pydantic's ``Field`` counts before all else.
    """
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _described(args[0], hint.__metadata__)
    if hint in NAMES:
        return NAMES[hint]
    if origin in UNIONS:
        # What is left out comes last.
        members = sorted(args, key=lambda x: x is type(None))
        return ' or '.join(describe(member) for member in members)
    if origin is Literal:
        return ' or '.join(map(repr, args))
    if origin is tuple:
        if Ellipsis in args:
            return f'several values, each {describe(args[0])}'
        return f'{len(args)} values: {", ".join(map(describe, args))}'
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return f'a dict with values of {describe(args[-1])}'
    if isinstance(origin, type) and issubclass(origin, Iterable):
        return f'a list, each item {describe(args[0])}'
    return f'a {getattr(hint, "__name__", hint)}'


def _described(hint: Any, marks: Iterable[Any]) -> str:
    """Words for a type with conditions."""
    bounds: dict[str, Any] = {}
    for mark in marks:
        if hasattr(mark, 'words'):
            return mark.words()
        if getattr(mark, 'description', None):
            return mark.description
        for condition in (mark, *getattr(mark, 'metadata', ())):
            for name in ('ge', 'gt', 'le', 'lt'):
                if hasattr(condition, name):
                    bounds[name] = f'{getattr(condition, name):,}'
    words = describe(hint)
    if {'ge', 'le'} <= set(bounds):
        return f'{words} from {bounds["ge"]} to {bounds["le"]}'
    signs = dict(gt='above {}', lt='below {}', ge='{} or more', le='up to {}')
    said = [
        text.format(bounds[name])
        for name, text in signs.items()
        if name in bounds
    ]
    return f'{words} {" and ".join(said)}' if said else words
