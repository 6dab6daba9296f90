"""Views of tensors in the order of their elements in memory."""

from __future__ import annotations

import functools
from typing import Optional

from torch import Tensor


def to_flat(x: Tensor, order: Optional[Tensor] = None) -> Tensor:
    """Return all elements in the order of memory, 1-dimensional.

    It is a view if memory has no gaps, so that one kernel serves every
    shape and memory format.

    Args:
        x (Tensor): Of any shape.
        order (Tensor, optional): A tensor of that shape whose memory order
            is followed. Default: ``x``.
    """
    return x.permute(memory_order(x if order is None else order)).reshape(-1)


def from_flat(values: Tensor, x: Tensor) -> Tensor:
    """Undo :func:`to_flat`.

    Args:
        values (Tensor): 1-dimensional.
        x (Tensor): A tensor of the shape and memory order of the result.
    """
    return _undo_permute(values, x, memory_order(x))


def to_rows(x: Tensor, order: Optional[Tensor] = None) -> Tensor:
    """Return one row for each index of the first dimension.

    It is a view if memory has no gaps and the first dimension has the
    largest stride.

    Args:
        x (Tensor): N x ...
        order (Tensor, optional): As in :func:`to_flat`.

    Returns:
        Tensor: N x K, each row in the order of memory.
    """
    dims = _first_dim_first(x if order is None else order)
    return x.permute(dims).reshape(x.shape[0], -1)


def from_rows(values: Tensor, x: Tensor) -> Tensor:
    """Undo :func:`to_rows`.

    Args:
        values (Tensor): N x K.
        x (Tensor): A tensor of the shape and memory order of the result.
    """
    return _undo_permute(values, x, _first_dim_first(x))


def in_order_of(x: Tensor, order: Tensor) -> Tensor:
    """Return a tensor with its elements in another tensor's memory order.

    Args:
        x (Tensor): N x ...
        order (Tensor): M x ... of as many dimensions. Its memory order is
            followed, except that the first dimension always comes first.

    Returns:
        Tensor: The same values; a view if they have that order already.
    """
    dims = _first_dim_first(order)
    return _undo_permute(x.permute(dims).contiguous(), x, dims)


def memory_order(x: Tensor) -> tuple[int, ...]:
    """Return the dimensions of a tensor, from large strides to small ones.

    Args:
        x (Tensor): Of any shape.
    """
    # A dimension of size 1 may have any stride.
    if x.is_contiguous():
        return tuple(range(x.dim()))
    return _by_stride(x.stride())


@functools.cache
def _by_stride(strides: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted(range(len(strides)), key=lambda d: (-strides[d], d)))


def _first_dim_first(x: Tensor) -> tuple[int, ...]:
    """Return the first dimension, then the others in the order of memory."""
    return (0, *(d for d in memory_order(x) if d))


def _undo_permute(values: Tensor, x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Return ``values`` in the shape that ``x`` has before ``permute(dims)``.

    Args:
        values (Tensor): All elements, in the order after the permutation.
        x (Tensor): A tensor of the shape before it.
        dims (tuple[int]): The permutation.
    """
    back = [dims.index(d) for d in range(x.dim())]
    return values.view([x.shape[d] for d in dims]).permute(back)
