"""Ctrl-C in a tool: one line that says how to go on, at any moment."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Optional

PACKAGE = Path(__file__).resolve().parent
#: The exit status after Ctrl-C, as shells have it.
STATUS = 130
#: Seconds in which a second Ctrl-C is one with the first.
TWICE = 1.0


class _State:
    """What the handler knows of the process."""

    hint = 'give the same command again'
    working = told = False
    begun, last = 0.0, -TWICE
    owner = os.getpid()


def is_tool() -> bool:
    """Whether this process runs one of the tools."""
    script = Path(sys.argv[0] if sys.argv else '')
    folders = PACKAGE / '.mim' / 'tools', PACKAGE.parent / 'tools'
    return script.stem == 'mmrazor-brecq' or (
        script.suffix == '.py'
        and script.resolve().parent in [f.resolve() for f in folders]
    )


def install() -> None:
    """Answer Ctrl-C from now on; a process that is no tool stays as it is.

    Before the work and after it there is nothing to clean, and the process
    ends at once. Processes that this one forks leave the answer to it.
    """
    if is_tool() and signal.getsignal(signal.SIGINT) in (
        signal.default_int_handler,
        _answer,
    ):
        signal.signal(signal.SIGINT, _answer)


def _answer(number: int, frame: Optional[FrameType]) -> None:
    if os.getpid() != _State.owner:
        return
    # Code that imports may swallow what is raised in it.
    if not _State.working or _imports(frame):
        tell()
        os._exit(STATUS)
    now = time.monotonic()
    if now - _State.last >= TWICE:
        _State.last = now
        raise KeyboardInterrupt


def _imports(frame: Any) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith('<frozen importlib'):
            return True
        frame = frame.f_back
    return False


def happened() -> bool:
    """Whether work was interrupted, whatever the error became on its way."""
    return _State.last > _State.begun


def tell() -> None:
    """Say how to go on, once, in the first of several processes."""
    if not _State.told and os.environ.get('RANK', '0') == '0':
        print(f'\nInterrupted: {_State.hint}', file=sys.stderr, flush=True)
    _State.told = True


@contextmanager
def working(hint: str) -> Iterator[None]:
    """Raise KeyboardInterrupt on Ctrl-C, so that work can clean up.

    Args:
        hint (str): How to go on, told by :func:`tell`.
    """
    _State.hint = hint or _State.hint
    _State.working, _State.told = True, False
    _State.begun = time.monotonic()
    try:
        yield
    finally:
        _State.working = False
