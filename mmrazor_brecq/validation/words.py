"""Put refusals into words: the key, the value, what was expected."""

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

#: A type as it is annotated: a class, or a form of :mod:`typing`.
Hint = Any

#: Largest number of characters of a value that a message shows.
SHOWN = 80
UNIONS = (Union, getattr(types, 'UnionType', Union))
NAMES: dict[Hint, str] = {
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
    """Path of keys that leads to a value.

    Attributes:
        path (str): The keys, beginning with the outermost one, such as
            ``model.reconstructor.iterations``; '' at the top.
        owner (str): Name of the class or function that takes the value.
    """

    path: str = ''
    owner: str = ''

    def key(self, name: str, owner: str) -> KeyPath:
        """Return the path of a key below this one."""
        return KeyPath(f'{self.path}.{name}' if self.path else name, owner)

    def item(self, name: object) -> KeyPath:
        """Return the path of an item of the value."""
        return KeyPath(f'{self.path}[{name!r}]', self.owner)

    def refusal(self, value: object, expected: str) -> ValueError:
        """Return the error for a value of the wrong kind.

        Args:
            value (Any): The value.
            expected (str): What was expected, in words.
        """
        name = self.path.split('.')[-1].split('[')[0]
        cure = f': change `{name}` of {self.owner}' if self.owner else ''
        return ValueError(
            f'{self.path or "value"}={show(value)}, expected {expected}{cure}'
        )

    def unknown(
        self, name: object, known: Sequence[str], inside: str = ''
    ) -> ValueError:
        """Return the error for a key below this one that is not known.

        Args:
            name (str): The key.
            known (list[str]): The keys that there are.
            inside (str): The key that takes it inside its value, if any.
        """
        path = self.key(str(name), '').path
        takes = f'takes {", ".join(known)}' if known else 'takes no key'
        hint = did_you_mean(name, known)
        if inside:
            hint = f', did you mean {inside}?'
        return ValueError(
            f'{path} is an unknown key{hint}: {self.owner} {takes}'
        )

    def missing(self, name: str) -> ValueError:
        """Return the error for a key below this one that has no value."""
        where = self.path or self.owner
        return ValueError(
            f'{where} lacks `{name}`, which {self.owner} needs: add '
            f'`{self.key(name, "").path}`'
        )


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """Return the question whether the most similar name is meant.

    Args:
        name (str): The name that was given.
        known (iterable | dict): The names that there are. Values of a dict
            are the names as users write them.

    Returns:
        str: Text such as ``, did you mean 'AdaRound'?``, or '' if no name is
        similar.
    """
    shown = known if isinstance(known, Mapping) else {x: x for x in known}
    names = {str(other).lower(): text for other, text in shown.items()}
    close = difflib.get_close_matches(str(name).lower(), names, 1, 0.5)
    return f', did you mean {names[close[0]]!r}?' if close else ''


def show(value: object) -> str:
    """Return a value as text on one line, shortened if it is long."""
    if isinstance(value, type):
        return f'the class {value.__name__}'
    text = repr(value)
    if '\n' not in text and len(text) <= SHOWN:
        return text
    if isinstance(value, (int, str, Mapping, list, tuple)):
        return f'{text[:SHOWN]}...'.replace('\n', ' ')
    shape = getattr(value, 'shape', None)
    size = f' of shape {tuple(shape)}' if shape is not None else ''
    return f'a {type(value).__name__}{size}'


def describe(hint: Hint) -> str:
    """Describe in words which values a type allows.

    Args:
        hint (type): A type as it is annotated. The ``description`` of
            pydantic's ``Field`` takes precedence.
    """
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _describe_annotated(args[0], hint.__metadata__)
    if hint in NAMES:
        return NAMES[hint]
    if origin in UNIONS:
        # None comes last.
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


def _describe_annotated(hint: Hint, metadata: Iterable[Any]) -> str:
    """Describe a type with conditions in words.

    Args:
        hint (type): The type without its conditions.
        metadata (iterable): What ``Annotated`` adds to it.
    """
    bounds: dict[str, str] = {}
    for mark in metadata:
        if hasattr(mark, 'expected'):
            return mark.expected()
        if getattr(mark, 'description', None):
            return mark.description
        for condition in (mark, *getattr(mark, 'metadata', ())):
            for name in ('ge', 'gt', 'le', 'lt'):
                if hasattr(condition, name):
                    bounds[name] = f'{getattr(condition, name):,}'
    words = describe(hint)
    if {'ge', 'le'} <= set(bounds):
        return f'{words} from {bounds["ge"]} to {bounds["le"]}'
    forms = dict(gt='above {}', lt='below {}', ge='{} or more', le='up to {}')
    conditions = [
        form.format(bounds[name])
        for name, form in forms.items()
        if name in bounds
    ]
    return f'{words} {" and ".join(conditions)}' if conditions else words
