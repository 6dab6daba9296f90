"""Tensors inside of whatever a network takes and returns.

``torch.utils._pytree`` opens lists, dicts, named tuples, and types that were
registered. Beside these, dataclasses, subclasses of dict, list and tuple, and
plain objects with tensors in them, such as data samples, are opened here.
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

#: A tensor, or any value that may have tensors in it.
Nested = Any
#: Puts leaves back where they were found.
Rebuild = Callable[[Sequence[Nested]], Nested]
#: Types that are never opened: they hold no activations.
OPAQUE = (
    *(Tensor, nn.Module, Generator, device, dtype, Enum, type),
    *(FunctionType, MethodType, ModuleType, str, bytes, int, float, complex),
)


def flatten(nested: Nested) -> tuple[list[Nested], Rebuild]:
    """Return the leaves of a structure, and a function that rebuilds it.

    Args:
        nested (Any): Any structure. An object is opened only if there is a
            tensor in it; it is never changed.

    Returns:
        tuple[list, callable]: The leaves in order, and a function from as
        many leaves to a structure of the same form.
    """
    return _flatten(nested, ())


def leaves(nested: Nested) -> list[Nested]:
    """Return the leaves of a structure, in order."""
    return flatten(nested)[0]


def tensors(nested: Nested) -> list[Tensor]:
    """Return the tensors in a structure, in order."""
    return [x for x in leaves(nested) if isinstance(x, Tensor)]


def map_tensors(
    function: Callable[[Tensor], Nested], nested: Nested
) -> Nested:
    """Return the same structure with a function applied to its tensors."""
    values, rebuild = flatten(nested)
    return rebuild(
        [function(x) if isinstance(x, Tensor) else x for x in values]
    )


def at_least_float32(nested: Nested) -> Nested:
    """Return the same structure, its real tensors in float32 or float64.

    Args:
        nested (Any): Tensors in any structure.
    """
    return map_tensors(_at_least_float32, nested)


def _at_least_float32(x: Tensor) -> Tensor:
    if not x.is_floating_point():
        return x
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _flatten(
    nested: Nested, parents: tuple[int, ...]
) -> tuple[list[Nested], Rebuild]:
    """Do as :func:`flatten` does.

    Args:
        nested (Any): Any structure.
        parents (tuple[int]): Ids of the opened objects that it is in.
    """
    if nested is None or isinstance(nested, OPAQUE):
        return [nested], _only
    children, spec = tree_flatten(nested)
    if len(children) == 1 and children[0] is nested:
        return _open(nested, parents) or ([nested], _only)
    values, rebuild_all = _flatten_all(children, parents)

    def rebuild(values: Sequence[Nested]) -> Nested:
        return tree_unflatten(rebuild_all(values), spec)

    return values, rebuild


def _only(values: Sequence[Nested]) -> Nested:
    (value,) = values
    return value


def _flatten_all(
    structures: Iterable[Nested], parents: tuple[int, ...]
) -> tuple[list[Nested], Callable[[Sequence[Nested]], list[Nested]]]:
    """Return the leaves of several structures, and what rebuilds a list.

    The function that rebuilds keeps no leaf, since that would keep
    activations in memory.
    """
    parts = [_flatten(x, parents) for x in structures]
    forms = [(len(values), rebuild) for values, rebuild in parts]

    def rebuild_all(values: Sequence[Nested]) -> list[Nested]:
        rest = iter(values)
        return [rebuild(list(islice(rest, n))) for n, rebuild in forms]

    return [leaf for values, _ in parts for leaf in values], rebuild_all


def _open(
    parent: object, parents: tuple[int, ...]
) -> Optional[tuple[list[Nested], Rebuild]]:
    """Open an object that torch takes for a leaf; None if it has no tensor."""
    if id(parent) in parents:  # It contains itself.
        return None
    items, attributes = _items(parent), _attributes(parent)
    # A value that is both an item and an attribute counts once.
    children = {id(x): x for x in [*items.values(), *attributes.values()]}
    values, rebuild_all = _flatten_all(
        children.values(), (*parents, id(parent))
    )
    if not any(isinstance(x, Tensor) for x in values):
        return None

    ids_by_key = {key: id(x) for key, x in items.items()}
    ids_by_name = {name: id(x) for name, x in attributes.items()}
    ids = list(children)
    try:
        empty = _copy_with(
            parent, dict.fromkeys(ids_by_key), dict.fromkeys(ids_by_name)
        )
    except Exception:  # Not every object can be copied.
        return None

    def rebuild(leaves: Sequence[Nested]) -> Nested:
        new = dict(zip(ids, rebuild_all(leaves)))
        return _copy_with(
            empty,
            {key: new[i] for key, i in ids_by_key.items()},
            {name: new[i] for name, i in ids_by_name.items()},
        )

    return values, rebuild


def _items(parent: object) -> dict[Nested, Nested]:
    """Return what a dict, a list or a tuple contains, by key or index."""
    if isinstance(parent, dict):
        return dict(parent.items())
    if isinstance(parent, (list, tuple)):
        return dict(enumerate(parent))
    return {}


def _attributes(parent: object) -> dict[str, Nested]:
    """Return an object's attributes by name, its slots if a dataclass."""
    found = dict(getattr(parent, '__dict__', {}))
    if is_dataclass(parent):
        names = [f.name for f in fields(parent) if hasattr(parent, f.name)]
        found.update({name: getattr(parent, name) for name in names})
    return found


def _copy_with(
    parent: Nested,
    items: dict[Nested, Nested],
    attributes: dict[str, Nested],
) -> Nested:
    """Return a shallow copy with other items and attributes."""
    if isinstance(parent, tuple):
        new: Nested = tuple.__new__(type(parent), items.values())
    else:
        new = copy.copy(parent)
    if isinstance(parent, dict):
        for key, value in items.items():
            dict.__setitem__(new, key, value)
    elif isinstance(parent, list):
        list.__setitem__(new, slice(None), list(items.values()))
    for name, value in attributes.items():
        object.__setattr__(new, name, value)  # It may be frozen.
    return new
