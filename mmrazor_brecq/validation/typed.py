"""Validate a value by the type that is declared for it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Callable, get_args, get_origin

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

from .words import UNIONS, Hint, KeyPath, describe

#: Takes a value and its path, and returns the value as it is to be used.
Validator = Callable[[Any, KeyPath], Any]
#: Neither `'3'` nor 3.0 is an int, and True is no number.
STRICT = ConfigDict(strict=True, arbitrary_types_allowed=True)

#: YAML knows lists alone, so a list is taken for a tuple, and vice versa.
OTHER_SEQUENCE: dict[type, type] = {list: tuple, tuple: list}


class Mark(ABC):
    """Metadata of ``Annotated`` that validates values in pydantic's place."""

    @abstractmethod
    def expected(self) -> str:
        """Describe in words which values are expected."""

    @abstractmethod
    def is_meant(self, value: object) -> bool:
        """Return whether a value looks like one of these, even a wrong one.

        A union then refuses it with this mark's own error.
        """

    def example(self, key: str, value: object) -> str:
        """Return a value that has a key of its own, '' if none has.

        Args:
            key (str): The key.
            value (Any): The value of the key.
        """
        return ''

    @abstractmethod
    def validate(self, value: Any, key_path: KeyPath) -> Any:
        """Validate a value, see :func:`validate`."""


def marks_of(hint: Hint) -> list[Mark]:
    """Return the marks of a type and of the members of a union."""
    if get_origin(hint) is Annotated:
        return [mark for mark in hint.__metadata__ if isinstance(mark, Mark)]
    if get_origin(hint) in UNIONS:
        return [mark for x in get_args(hint) for mark in marks_of(x)]
    return []


def validate(value: Any, hint: Hint, key_path: KeyPath) -> Any:
    """Validate a value by a type.

    Args:
        value (Any): The value.
        hint (type): Its type, as it would be annotated.
        key_path (KeyPath): Path of the value, for the error.

    Returns:
        Any: The value. Where the type says so, a name has become a config.

    Raises:
        ValueError: If the value is of another type, or out of range.
    """
    return make_validator(hint)(value, key_path)


def make_validator(hint: Hint) -> Validator:
    """Return the function that validates values by a type."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        for mark in hint.__metadata__:
            if isinstance(mark, Mark):
                return mark.validate
        return _pydantic_validator(hint)
    if origin in UNIONS:
        return _union_validator(hint, args)
    if isinstance(origin, type) and args:
        if issubclass(origin, Mapping):
            return _mapping_validator(hint, make_validator(args[-1]))
        if issubclass(origin, Sequence) and origin is not tuple:
            return _sequence_validator(hint, make_validator(args[0]))
    return _pydantic_validator(hint)


def _pydantic_validator(hint: Hint) -> Validator:
    try:
        adapter = TypeAdapter(hint, config=STRICT)
    except (PydanticUserError, TypeError, NameError):
        # pydantic does not know this type: every value is taken.
        return lambda value, key_path: value

    def check(value: Any, key_path: KeyPath) -> Any:
        if type(value).__module__ == 'numpy' and hasattr(value, 'dtype'):
            value = value.item() if not value.ndim else value
        other = OTHER_SEQUENCE.get(type(value))
        for form in (value, other(value)) if other else (value,):
            try:
                adapter.validate_python(form)
            except ValidationError as error:
                cause = error.errors()[0].get('ctx', {}).get('error')
                # An error of our own validators says what was expected.
                if isinstance(cause, ValueError):
                    raise key_path.refusal(value, str(cause)) from None
            else:
                return form
        raise key_path.refusal(value, describe(hint))

    return check


def _union_validator(hint: Hint, members: Sequence[Hint]) -> Validator:
    validators = [(member, make_validator(member)) for member in members]

    def check(value: Any, key_path: KeyPath) -> Any:
        error_of_member = None
        for member, validator in validators:
            try:
                return validator(value, key_path)
            except ValueError as error:
                if _is_meant_as(value, member):
                    error_of_member = error
        raise error_of_member or key_path.refusal(value, describe(hint))

    return check


def _is_meant_as(value: object, member: Hint) -> bool:
    """Return whether a value looks like this member of a union."""
    if get_origin(member) is Annotated:
        metadata = member.__metadata__
        for mark in metadata:
            if isinstance(mark, Mark):
                return mark.is_meant(value)
        member = get_args(member)[0]
        if any(getattr(mark, 'func', None) for mark in metadata):
            # A function validates it, and its error is the better one.
            return isinstance(member, type) and isinstance(value, member)
    kind = get_origin(member) or member
    if not isinstance(kind, type) or isinstance(value, str):
        return False
    return issubclass(kind, (Mapping, Sequence)) and isinstance(value, kind)


def _mapping_validator(hint: Hint, validator: Validator) -> Validator:
    def check(value: object, key_path: KeyPath) -> object:
        if not isinstance(value, Mapping):
            raise key_path.refusal(value, describe(hint))
        for key, item in value.items():
            validator(item, key_path.item(key))
        return value

    return check


def _sequence_validator(hint: Hint, validator: Validator) -> Validator:
    def check(value: object, key_path: KeyPath) -> object:
        if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
            raise key_path.refusal(value, describe(hint))
        items = [validator(x, key_path.item(i)) for i, x in enumerate(value)]
        return tuple(items) if isinstance(value, tuple) else items

    return check
