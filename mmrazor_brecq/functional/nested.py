"""Tensors in whatever a network takes and gives.

Beside what ``torch.utils._pytree`` opens (lists, dicts, named tuples, types
that somebody registered) these are dataclasses, subclasses of dict, list and
tuple, and plain objects that hold tensors, such as a data sample.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from itertools import islice
from types import FunctionType, MethodType, ModuleType
from typing import Any, Optional

import torch
from torch import Generator, Tensor, device, dtype, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

#: Puts leaves back to where they were found.
Rebuild = Callable[[Sequence[Any]], Any]
#: What is never looked into: these hold no activations.
CLOSED = (
    *(Tensor, nn.Module, Generator, device, dtype, Enum, type),
    *(FunctionType, MethodType, ModuleType, str, bytes, int, float, complex),
)


def flatten(nested: Any) -> tuple[list[Any], Rebuild]:
    """Return the leaves of a structure, and what puts them back.

    Args:
        nested (Any): Any structure. An object is opened only if there is a
            tensor in it; it is never changed.

    Returns:
        tuple[list, callable]: The leaves in order, and a function from as
        many leaves to a structure of the same form.
    """
    return _flatten(nested, ())


def leaves(nested: Any) -> list[Any]:
    """Return the leaves of a structure, in order."""
    return flatten(nested)[0]


def tensors(nested: Any) -> list[Tensor]:
    """Return the tensors in a structure, in order."""
    return [x for x in leaves(nested) if isinstance(x, Tensor)]


def map_tensors(function: Callable[[Tensor], Any], nested: Any) -> Any:
    """Return the same structure with a function applied to its tensors."""
    found, rebuild = flatten(nested)
    return rebuild(
        [function(x) if isinstance(x, Tensor) else x for x in found]
    )


def at_least_float32(nested: Any) -> Any:
    """Return the same structure, its real tensors in float32 or more.

    Args:
        nested (Any): Tensors in any structure.
    """
    return map_tensors(_wide, nested)


def _wide(x: Tensor) -> Tensor:
    if not x.is_floating_point():
        return x
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _flatten(nested: Any, above: tuple[int, ...]) -> tuple[list, Rebuild]:
    if nested is None or isinstance(nested, CLOSED):
        return [nested], _only
    outer, spec = tree_flatten(nested)
    if len(outer) == 1 and outer[0] is nested:
        return _open(nested, above) or ([nested], _only)
    found, rebuild_all = _flatten_all(outer, above)

    def rebuild(values: Sequence[Any]) -> Any:
        return tree_unflatten(rebuild_all(values), spec)

    return found, rebuild


def _only(values: Sequence[Any]) -> Any:
    (value,) = values
    return value


def _flatten_all(
    several: Iterable[Any], above: tuple[int, ...]
) -> tuple[list, Rebuild]:
    """The leaves of several structures, and what makes a list of them.

    What rebuilds holds no leaf: activations would stay in memory.
    """
    parts = [_flatten(x, above) for x in several]
    forms = [(len(found), rebuild) for found, rebuild in parts]

    def rebuild_all(values: Sequence[Any]) -> list[Any]:
        rest = iter(values)
        return [rebuild(list(islice(rest, n))) for n, rebuild in forms]

    return [leaf for found, _ in parts for leaf in found], rebuild_all


def _open(
    thing: Any, above: tuple[int, ...]
) -> Optional[tuple[list, Rebuild]]:
    """Look into what torch takes for a leaf; None if no tensor is there."""
    if id(thing) in above:  # It holds itself.
        return None
    items, attributes = _items(thing), _attributes(thing)
    # Some keep a value under a key and as an attribute: it counts once.
    values = {id(x): x for x in [*items.values(), *attributes.values()]}
    found, rebuild_all = _flatten_all(values.values(), (*above, id(thing)))
    if not any(isinstance(x, Tensor) for x in found):
        return None

    keys = {key: id(x) for key, x in items.items()}
    names = {name: id(x) for name, x in attributes.items()}
    places = list(values)
    try:
        empty = _with(thing, dict.fromkeys(keys), dict.fromkeys(names))
    except Exception:  # Some things cannot be copied.
        return None

    def rebuild(leaves: Sequence[Any]) -> Any:
        new = dict(zip(places, rebuild_all(leaves)))
        return _with(
            empty,
            {key: new[place] for key, place in keys.items()},
            {name: new[place] for name, place in names.items()},
        )

    return found, rebuild


def _items(thing: Any) -> dict[Any, Any]:
    if isinstance(thing, dict):
        return dict(thing.items())
    return dict(enumerate(thing)) if isinstance(thing, (list, tuple)) else {}


def _attributes(thing: Any) -> dict[str, Any]:
    found = dict(getattr(thing, '__dict__', {}))
    if is_dataclass(thing):  # It may have slots.
        names = [f.name for f in fields(thing) if hasattr(thing, f.name)]
        found.update({name: getattr(thing, name) for name in names})
    return found


def _with(thing: Any, items: dict, attributes: dict[str, Any]) -> Any:
    """A shallow copy with other values."""
    if isinstance(thing, tuple):
        new: Any = tuple.__new__(type(thing), items.values())
    else:
        new = copy.copy(thing)
    if isinstance(thing, dict):
        for key, value in items.items():
            dict.__setitem__(new, key, value)
    elif isinstance(thing, list):
        list.__setitem__(new, slice(None), list(items.values()))
    for name, value in attributes.items():
        object.__setattr__(new, name, value)  # It may be frozen.
    return new
