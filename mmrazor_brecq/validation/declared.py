"""Validate arguments by what constructors and functions declare."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from types import MappingProxyType, SimpleNamespace
from typing import Any, Callable, NamedTuple, TypeVar

from .typed import Mark, Validator, make_validator, marks_of
from .words import Hint, KeyPath

T = TypeVar('T', bound=Callable)
#: A class or a function.
Target = Callable[..., Any]
NAMELESS = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class Declared(NamedTuple):
    """Arguments that a class or a function declares.

    Attributes:
        parameters (dict): Parameters by name, without ``self``.
        validators (dict): Validators by name. Parameters without a type have
            none.
        takes_others (bool): Whether it takes names that it does not declare.
        marks (dict): Marks of the parameters, by name.
    """

    parameters: Mapping[str, inspect.Parameter]
    validators: Mapping[str, Validator]
    takes_others: bool
    marks: Mapping[str, Sequence[Mark]] = MappingProxyType({})

    def inside(self, key: str, value: object) -> str:
        """Return the argument that takes a key inside its value, if any.

        Args:
            key (str): A key that is no argument itself.
            value (Any): Its value.
        """
        for name, marks in self.marks.items():
            for mark in marks:
                if example := mark.example(key, value):
                    return f'{name}={example}'
        return ''


def validated(target: T) -> T:
    """Let a class or a function validate its arguments in every call.

    Args:
        target (type | callable): The class, which is changed in place, or
            the function. Parameters without a type, or with one that cannot
            be evaluated, are not validated, and neither are default values.

    Example:
        >>> @validated
        ... def repeat(count: Count) -> int:
        ...     return count
        >>> repeat(0)
        Traceback (most recent call last):
            ...
        ValueError: count=0, expected a whole number from 1 to ...
    """
    if not isinstance(target, type):
        return typing.cast(T, _with_validation(target, target, method=False))
    init = target.__init__  # type: ignore[misc]
    if inspect.isfunction(init) and not _takes_nothing(init):
        # An inherited constructor is validated already.
        if not hasattr(init, 'validates_for'):
            target.__init__ = _with_validation(  # type: ignore[misc]
                init, target, method=True
            )
    return target


def _with_validation(function: Target, target: Target, method: bool) -> Target:
    """Return a function that validates its arguments first.

    Args:
        function (callable): The function, or the constructor of a class.
        target (type | callable): What declares the arguments: the function
            itself, or the class.
        method (bool): Whether the first argument is ``self``.
    """
    names = [
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind not in NAMELESS
        and parameter.kind is not inspect.Parameter.KEYWORD_ONLY
    ]

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        self_args = args[:method]
        given = dict(zip(names[method:], args[method:]))
        # Python itself refuses an argument that is given twice.
        if not given.keys() & kwargs.keys():
            owner = type(self_args[0]) if method else target
            key_path = KeyPath('', owner.__name__)
            values = _validate(target, {**given, **kwargs}, key_path)
            rest = args[method + len(given) :]
            args = (*self_args, *(values.pop(name) for name in given), *rest)
            kwargs = values
        return function(*args, **kwargs)

    call.validates_for = target  # type: ignore[attr-defined]
    return call


def check_keys(
    target: Target,
    given: Mapping[str, Any],
    key_path: KeyPath,
    excluded: Sequence[str] = (),
) -> None:
    """Validate the keys of a config by the arguments of a class or function.

    Args:
        target (type | callable): The class or the function.
        given (dict): Its arguments.
        key_path (KeyPath): Path of the config.
        excluded (tuple[str]): Arguments that the config must not have.

    Raises:
        ValueError: If a key is unknown or missing, or its value is wrong.
    """
    owner = getattr(target, '__name__', type(target).__name__)
    _validate(target, given, key_path._replace(owner=owner), excluded)
    for name, parameter in declared(target).parameters.items():
        needed = parameter.default is inspect.Parameter.empty
        if needed and name not in (*given, *excluded):
            raise KeyPath(key_path.path, owner).missing(name)


def _validate(
    target: Target,
    given: Mapping[str, Any],
    key_path: KeyPath,
    excluded: Sequence[str] = (),
) -> dict[str, Any]:
    """Return the arguments of a class or function, each one validated."""
    names = declared(target)
    parameters, validators, takes_others, _ = names
    known = [name for name in parameters if name not in excluded]
    values = dict(given)
    for name, value in given.items():
        if name not in known and (name in excluded or not takes_others):
            inside = names.inside(name, value)
            raise key_path.unknown(name, known, inside)
        if name in validators and value is not parameters[name].default:
            inner = key_path.key(name, key_path.owner)
            values[name] = validators[name](value, inner)
    return values


def _takes_nothing(init: Target) -> bool:
    """Return whether a constructor takes no arguments in fact.

    Its signature takes any. That of torch.nn.Module is recognized by name,
    so that torch need not be imported.
    """
    module = getattr(init, '__module__', None)
    return init is object.__init__ or module == 'torch.nn.modules.module'


@functools.cache
def declared(target: Target) -> Declared:
    """Return the arguments that a class or a function declares."""
    is_class = isinstance(target, type)
    function = target.__init__ if is_class else target
    if _takes_nothing(function):
        return Declared({}, {}, False)
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # It is not written in Python.
        return Declared({}, {}, True)
    parameters = dict(list(signature.parameters.items())[is_class:])
    kinds = {parameter.kind for parameter in parameters.values()}
    parameters = {
        name: parameter
        for name, parameter in parameters.items()
        if parameter.kind not in NAMELESS
    }
    hints = _hints(function, parameters)
    if is_class and is_dataclass(target):
        # Types of inherited fields are evaluated in their own modules.
        hints = {**typing.get_type_hints(target, include_extras=True), **hints}
    return Declared(
        parameters,
        {n: make_validator(hints[n]) for n in parameters if n in hints},
        inspect.Parameter.VAR_KEYWORD in kinds,
        {n: marks_of(hints[n]) for n in parameters if n in hints},
    )


def _hints(
    function: Target, parameters: Mapping[str, inspect.Parameter]
) -> dict[str, Hint]:
    """Return the types of those parameters whose type can be evaluated."""
    hints = {}
    namespace = getattr(inspect.unwrap(function), '__globals__', {})
    for name, parameter in parameters.items():
        if parameter.annotation is inspect.Parameter.empty:
            continue
        single = SimpleNamespace(__annotations__={name: parameter.annotation})
        try:
            found = typing.get_type_hints(
                single, namespace, include_extras=True
            )
        except Exception:  # A name that only type checkers import, or a typo.
            continue
        hints.update(found)
    return hints
