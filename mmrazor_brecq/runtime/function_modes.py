"""Function modes of torch, put aside where they must not see anything."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_count = torch._C._len_torch_function_stack
_pop = torch._C._pop_torch_function_stack
_push = torch._C._push_on_torch_function_stack


def active_modes() -> int:
    """Return the number of function modes that are active."""
    return _count()


@contextmanager
def put_aside(kept: int = 0) -> Iterator[None]:
    """Take function modes off the thread's stack, within the context.

    Args:
        kept (int): Number of modes, the first ones, that stay active.
    """
    modes = [_pop() for _ in range(_count() - kept)]
    try:
        yield
    finally:
        for mode in reversed(modes):
            _push(mode)
