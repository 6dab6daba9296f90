"""What the C library does with memory that is freed."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Optional

#: Parameters of mallopt, from <malloc.h>.
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
#: Bytes that glibc sets them to when a process starts.
DEFAULT = 2**17

#: How many contexts are open.
_depth = 0


@functools.cache
def _c_library() -> Optional[ctypes.CDLL]:
    """Return the C library if it is glibc, whose allocator can be steered."""
    try:
        libc = ctypes.CDLL('libc.so.6')
        return libc if hasattr(libc, 'malloc_trim') else None
    except OSError:
        return None


@contextmanager
def reuse_freed_memory() -> Iterator[None]:
    """Keep freed memory for the next tensors, within this context.

    By default glibc returns every larger block to the system and fetches it
    anew, page by page, in every iteration. That costs as much as the
    convolutions. Where the C library is another, this does nothing.
    """
    global _depth
    libc = _c_library()
    if libc and not _depth:
        libc.mallopt(MMAP_THRESHOLD, 2**25)
        libc.mallopt(TRIM_THRESHOLD, 2**30)
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1
        if libc and not _depth:
            libc.mallopt(MMAP_THRESHOLD, DEFAULT)
            libc.mallopt(TRIM_THRESHOLD, DEFAULT)
            libc.malloc_trim(0)


def give_back_freed_memory() -> None:
    """Return to the system what is free by now."""
    if libc := _c_library():
        libc.malloc_trim(0)
