"""Elementwise maths in one pass over memory, where a compiler is at hand.

A chain of small operations reads and writes its tensors once for each of
them. ``torch.compile`` makes one kernel of the chain; it is compiled once
for all shapes, and cached on disk. Without a compiler the plain function
runs. (``TORCH_COMPILE_DISABLE=1`` is torch's own switch.)
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import shutil
import warnings
from typing import Any, Callable, Optional, TypeVar

import torch
from torch import Tensor

F = TypeVar('F', bound=Callable[..., Any])


def fused(function: F) -> F:
    """Decorate a function to run as one kernel, without gradients."""
    compiled: list[Callable] = []

    @functools.wraps(function)
    def run(*args: Any) -> Any:
        # The compiler asks what a view is a view of, what is a parameter, and
        # what needs a gradient, and compiles anew for every answer.
        args = tuple(x.data if isinstance(x, Tensor) else x for x in args)
        if not compiled:
            compiled.append(_compiled(function))
        try:
            return compiled[0](*args)
        except Exception as error:
            if compiled[0] is function:
                raise
            # A compiler that fails costs speed, never the run.
            reason = str(error).partition('\n')[0]
            warnings.warn(
                f'{function.__name__} runs uncompiled: {reason}', stacklevel=2
            )
            compiled[0] = function
            return function(*args)

    return run  # type: ignore[return-value]


def _compiled(function: Callable) -> Callable:
    compiler = os.environ.get('CXX', 'g++')
    if not (shutil.which(compiler) or torch.cuda.is_available()):
        # Python shows what many functions say in the same words once.
        warnings.warn(
            f'There is no {compiler}: all runs uncompiled, and takes longer. '
            'Install it, or name another compiler in CXX',
            stacklevel=2,
        )
        return function
    # It warns of a missing accelerator on every machine without one.
    logging.getLogger('torch.utils.cpp_extension').setLevel(logging.ERROR)
    return torch.compile(function, dynamic=True)


@functools.cache
def _c_library() -> Any:
    """The C library if it is glibc, whose memory can be steered."""
    try:
        libc = ctypes.CDLL('libc.so.6')
        return libc if hasattr(libc, 'malloc_trim') else None
    except OSError:
        return None


@functools.cache
def reuse_freed_memory() -> None:
    """Let the C library keep what is freed, for the next tensor of its kind.

    By default glibc gives every larger block back to the system and fetches
    it anew, page by page, in every iteration; that costs as much as the
    convolutions. Does nothing where the C library is another.
    """
    trim_threshold, mmap_threshold = -1, -3  # of <malloc.h>
    if libc := _c_library():
        libc.mallopt(mmap_threshold, 2**25)
        libc.mallopt(trim_threshold, 2**30)


def give_back_freed_memory() -> None:
    """Let the C library return to the system what is free by now."""
    if libc := _c_library():
        libc.malloc_trim(0)


def flat(x: Tensor, order: Optional[Tensor] = None) -> Tensor:
    """All elements in the order of memory, 1-dimensional.

    A view wherever memory has no gaps, so that one kernel serves every
    shape and memory format.

    Args:
        x (Tensor): Of any shape.
        order (Tensor, optional): A tensor of that shape, the memory order
            of which is followed; that of ``x`` by default.
    """
    return x.permute(memory_order(x if order is None else order)).reshape(-1)


def like(values: Tensor, x: Tensor) -> Tensor:
    """Undo :func:`flat`: ``values`` in the shape and memory order of ``x``."""
    return _unpermuted(values, x, memory_order(x))


def rows(x: Tensor, order: Optional[Tensor] = None) -> Tensor:
    """A row for each index of the first dimension, in the order of memory.

    A view wherever memory has no gaps and the first dimension leads in it.

    Args:
        x (Tensor): N x ...
        order (Tensor, optional): As in :func:`flat`.
    """
    dims = _first_leads(x if order is None else order)
    return x.permute(dims).reshape(len(x), -1)


def from_rows(values: Tensor, x: Tensor) -> Tensor:
    """Undo :func:`rows`: ``values`` in the shape of ``x``."""
    return _unpermuted(values, x, _first_leads(x))


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
