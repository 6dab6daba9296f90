"""What constructors and functions declare of their arguments."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from types import SimpleNamespace
from typing import Any, Callable, NamedTuple, TypeVar

from .typed import Judge, compiled
from .words import KeyPath

T = TypeVar('T', bound=Callable)
NAMELESS = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class Declared(NamedTuple):
    """What something that is called takes.

    Attributes:
        parameters (dict): Parameters by name, without ``self``.
        judges (dict): What judges each; those without a type have none.
        open (bool): Whether it takes names that it does not declare.
    """

    parameters: Mapping[str, inspect.Parameter]
    judges: Mapping[str, Judge]
    open: bool


def validated(target: T) -> T:
    """Judge the arguments of a class or a function in every call.

    Args:
        target (type | callable): A class is changed in place. Parameters
            without a type, or with one that cannot be evaluated, are left
            alone, and so is a value that is the default.
    """
    if not isinstance(target, type):
        return typing.cast(T, _judging(target, target, method=False))
    init = target.__init__  # type: ignore[misc]
    if inspect.isfunction(init) and not _takes_nothing(init):
        # One that is inherited has been judged where it comes from.
        if not hasattr(init, 'declared_by'):
            target.__init__ = _judging(  # type: ignore[misc]
                init, target, method=True
            )
    return target


def _judging(function: Callable, target: Any, method: bool) -> Callable:
    """``function``, its arguments judged by what ``target`` declares."""
    names = [
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind not in NAMELESS
        and parameter.kind is not inspect.Parameter.KEYWORD_ONLY
    ]

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        own, given = args[:method], dict(zip(names[method:], args[method:]))
        if not given.keys() & kwargs.keys():  # Else Python says so.
            owner = type(own[0]) if method else target
            place = KeyPath('', owner.__name__)
            judged = _check(target, {**given, **kwargs}, place)
            rest = args[method + len(given) :]
            args = (*own, *(judged.pop(name) for name in given), *rest)
            kwargs = judged
        return function(*args, **kwargs)

    call.declared_by = target  # type: ignore[attr-defined]
    return call


def check_keys(
    target: Any,
    given: Mapping[str, Any],
    place: KeyPath,
    settled: Sequence[str] = (),
) -> None:
    """Judge the keys of a config by what they are given to.

    Args:
        target (type | callable): A class or a function.
        given (dict): Its arguments.
        place (KeyPath): Of the config.
        settled (tuple[str]): Arguments that the config must not have.

    Raises:
        ValueError: If a key is unknown or missing, or its value is wrong.
    """
    owner = getattr(target, '__name__', type(target).__name__)
    _check(target, given, place._replace(owner=owner), settled)
    for name, parameter in declared(target).parameters.items():
        needed = parameter.default is inspect.Parameter.empty
        if needed and name not in (*given, *settled):
            raise KeyPath(place.path, owner).missing(name)


def _check(
    target: Any,
    given: Mapping[str, Any],
    place: KeyPath,
    settled: Sequence[str] = (),
) -> dict[str, Any]:
    parameters, judges, is_open = declared(target)
    known = [name for name in parameters if name not in settled]
    judged = dict(given)
    for name, value in given.items():
        if name not in known and (name in settled or not is_open):
            raise place.unknown(name, known)
        if name in judges and value is not parameters[name].default:
            inner = place.key(name, place.owner)
            judged[name] = judges[name](value, inner)
    return judged


def _takes_nothing(init: Any) -> bool:
    """Whether a constructor takes nothing, though it does not say so."""
    # That of torch.nn.Module is known without importing it.
    module = getattr(init, '__module__', None)
    return init is object.__init__ or module == 'torch.nn.modules.module'


@functools.cache
def declared(target: Any) -> Declared:
    """What a class or a function takes."""
    is_class = isinstance(target, type)
    function = target.__init__ if is_class else target
    if _takes_nothing(function):
        return Declared({}, {}, False)
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # Not written in Python.
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
        # A field's type is written where its class is.
        hints = {**typing.get_type_hints(target, include_extras=True), **hints}
    return Declared(
        parameters,
        {n: compiled(hints[n]) for n in parameters if n in hints},
        inspect.Parameter.VAR_KEYWORD in kinds,
    )


def _hints(
    function: Any, parameters: Mapping[str, inspect.Parameter]
) -> dict[str, Any]:
    """The types of parameters, of those that can be evaluated."""
    hints = {}
    space = getattr(inspect.unwrap(function), '__globals__', {})
    for name, parameter in parameters.items():
        if parameter.annotation is inspect.Parameter.empty:
            continue
        alone = SimpleNamespace(__annotations__={name: parameter.annotation})
        try:
            found = typing.get_type_hints(alone, space, include_extras=True)
        except Exception:  # A name of type checkers alone, or a typo.
            continue
        hints.update(found)
    return hints
