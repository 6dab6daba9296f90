"""Time and memory that a run takes."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Clock that adds up the seconds of each part of a run."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.parts: dict[str, float] = {}

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Return a context whose seconds are added to a part."""
        start = time.perf_counter()
        yield
        spent = time.perf_counter() - start
        self.parts[part] = self.parts.get(part, 0.0) + spent

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds of each part, and in total until now."""
        total = time.perf_counter() - self.start
        return {
            k: round(v, 2) for k, v in dict(self.parts, total=total).items()
        }


def peak_memory_mb() -> float:
    """Return the largest resident size of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
