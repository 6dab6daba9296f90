"""What the C library keeps of memory that is freed."""

from __future__ import annotations

import ctypes
import functools
from typing import Any


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
