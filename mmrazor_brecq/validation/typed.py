"""Judges a value by the type that is declared for it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Callable, get_args, get_origin

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

from .words import UNIONS, KeyPath, describe

#: Takes a value and its place, and gives it as it is to be used.
Judge = Callable[[Any, KeyPath], Any]
#: No `'3'` for 3, no True for 1, no 3.0 for a count.
STRICT = ConfigDict(strict=True, arbitrary_types_allowed=True)

#: YAML and the command line know one kind of sequence alone.
OTHER_SEQUENCE: dict[type, Any] = {list: tuple, tuple: list}


class Mark(ABC):
    """What stands in ``Annotated`` and judges in pydantic's place."""

    @abstractmethod
    def words(self) -> str:
        """What is expected."""

    @abstractmethod
    def means(self, value: Any) -> bool:
        """Whether a value is at least meant as one of these."""

    @abstractmethod
    def validate(self, value: Any, place: KeyPath) -> Any:
        """Judge a value, as :func:`judge` does."""


def validate(value: Any, hint: Any, place: KeyPath) -> Any:
    """Judge a value.

    Args:
        value (Any): The value.
        hint (Any): Its type, as it would be annotated.
        place (KeyPath): Where it was given.

    Returns:
        Any: The value, but for names that became configs.

    Raises:
        ValueError: If it is of another type, or out of range.
    """
    return compiled(hint)(value, place)


def compiled(hint: Any) -> Judge:
    """What judges by a type, made once."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        own = [m.validate for m in hint.__metadata__ if isinstance(m, Mark)]
        return own[0] if own else _leaf(hint)
    if origin in UNIONS:
        return _union(hint, args)
    if isinstance(origin, type) and args:
        if issubclass(origin, Mapping):
            return _mapping(hint, compiled(args[-1]))
        if issubclass(origin, Sequence) and origin is not tuple:
            return _sequence(hint, compiled(args[0]))
    return _leaf(hint)


def _leaf(hint: Any) -> Judge:
    """By pydantic."""
    try:
        adapter = TypeAdapter(hint, config=STRICT)
    except (PydanticUserError, TypeError, NameError):
        return lambda value, place: value  # It says nothing that we know.

    def check(value: Any, place: KeyPath) -> Any:
        if type(value).__module__ == 'numpy' and hasattr(value, 'dtype'):
            value = value.item() if not value.ndim else value
        others = OTHER_SEQUENCE.get(type(value))
        for form in (value, others(value)) if others else (value,):
            try:
                adapter.validate_python(form)
            except ValidationError as error:
                said = error.errors()[0].get('ctx', {}).get('error')
                if isinstance(said, ValueError):  # It says what it expects.
                    raise place.refusal(value, str(said)) from None
            else:
                return form
        raise place.refusal(value, describe(hint))

    return check


def _union(hint: Any, members: Sequence[Any]) -> Judge:
    judges = [(member, compiled(member)) for member in members]

    def check(value: Any, place: KeyPath) -> Any:
        deeper = None
        for member, inner in judges:
            try:
                return inner(value, place)
            except ValueError as error:
                if _shaped(value, member):
                    deeper = error
        raise deeper or place.refusal(value, describe(hint))

    return check


def _shaped(value: Any, member: Any) -> bool:
    """Whether a value is meant as this member of a union."""
    if get_origin(member) is Annotated:
        marks = member.__metadata__
        own = [mark for mark in marks if isinstance(mark, Mark)]
        if own:
            return own[0].means(value)
        member = get_args(member)[0]
        if any(getattr(mark, 'func', None) for mark in marks):
            # It has words of its own for what is of its kind.
            return isinstance(member, type) and isinstance(value, member)
    kind = get_origin(member) or member
    if not isinstance(kind, type) or isinstance(value, str):
        return False
    return issubclass(kind, (Mapping, Sequence)) and isinstance(value, kind)


def _mapping(hint: Any, inner: Judge) -> Judge:
    def check(value: Any, place: KeyPath) -> Any:
        if not isinstance(value, Mapping):
            raise place.refusal(value, describe(hint))
        for key, item in value.items():
            inner(item, place.item(key))
        return value

    return check


def _sequence(hint: Any, inner: Judge) -> Judge:
    def check(value: Any, place: KeyPath) -> Any:
        if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
            raise place.refusal(value, describe(hint))
        judged = [inner(x, place.item(i)) for i, x in enumerate(value)]
        return tuple(judged) if isinstance(value, tuple) else judged

    return check
