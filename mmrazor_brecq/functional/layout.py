"""The order of a tensor's elements in memory."""

from __future__ import annotations

import functools
from typing import Optional

from torch import Tensor


def to_flat(x: Tensor, order: Optional[Tensor] = None) -> Tensor:
    """All elements in the order of memory, 1-dimensional.

    A view wherever memory has no gaps, so that one kernel serves every
    shape and memory format.

    Args:
        x (Tensor): Of any shape.
        order (Tensor, optional): A tensor of that shape, the memory order
            of which is followed; that of ``x`` by default.
    """
    return x.permute(memory_order(x if order is None else order)).reshape(-1)


def from_flat(values: Tensor, x: Tensor) -> Tensor:
    """Undo :func:`flat`: ``values`` in the shape and memory order of ``x``."""
    return _unpermuted(values, x, memory_order(x))


def to_rows(x: Tensor, order: Optional[Tensor] = None) -> Tensor:
    """A row for each index of the first dimension, in the order of memory.

    A view wherever memory has no gaps and the first dimension leads in it.

    Args:
        x (Tensor): N x ...
        order (Tensor, optional): As in :func:`flat`.
    """
    dims = _first_leads(x if order is None else order)
    return x.permute(dims).reshape(x.shape[0], -1)


def from_rows(values: Tensor, x: Tensor) -> Tensor:
    """Undo :func:`rows`: ``values`` in the shape of ``x``."""
    return _unpermuted(values, x, _first_leads(x))


def in_order_of(x: Tensor, order: Tensor) -> Tensor:
    """Return ``x`` with its elements in another tensor's order of memory.

    Args:
        x (Tensor): N x ...
        order (Tensor): M x ... of as many dimensions, the order of which is
            followed, but that the first dimension leads.

    Returns:
        Tensor: The same values; a view where its order is that one.
    """
    dims = _first_leads(order)
    return _unpermuted(x.permute(dims).contiguous(), x, dims)


def _first_leads(x: Tensor) -> tuple[int, ...]:
    return (0, *(d for d in memory_order(x) if d))


def _unpermuted(values: Tensor, x: Tensor, dims: tuple[int, ...]) -> Tensor:
    back = [dims.index(d) for d in range(x.dim())]
    return values.view([x.shape[d] for d in dims]).permute(back)


def memory_order(x: Tensor) -> tuple[int, ...]:
    """Dimensions of ``x``, those of large steps in memory first.

    Args:
        x (Tensor): Of any shape.
    """
    if x.is_contiguous():  # whatever the steps of dimensions of size 1
        return tuple(range(x.dim()))
    return _by_steps(x.stride())


@functools.cache
def _by_steps(steps: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted(range(len(steps)), key=lambda d: (-steps[d], d)))
