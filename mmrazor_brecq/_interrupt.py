"""Ctrl-C in a tool: one line that says how to go on, at any moment."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Optional

PACKAGE = Path(__file__).resolve().parent
#: The exit status after Ctrl-C, as shells have it.
STATUS = 130
#: Seconds in which a second Ctrl-C is one with the first, after which one
#: that came at a bad moment is repeated, and for which it is.
TWICE, AGAIN, PATIENCE = 1.0, 0.02, 2.0


class _State:
    """What the handler knows of the process."""

    hint = later = 'give the same command again'
    working = told = False
    begun, last, waits = 0.0, -TWICE, 0.0
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
    ends at once. Processes that this one starts leave the answer to it.
    """
    if not is_tool():
        return
    processes = sys.modules.get('multiprocessing.process')
    if processes and processes.current_process().name != 'MainProcess':
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    elif signal.getsignal(signal.SIGINT) in (
        signal.default_int_handler,
        _answer,
    ):
        signal.signal(signal.SIGINT, _answer)
        signal.signal(signal.SIGALRM, _answer)
        # Called after all others, when there is nothing left to interrupt:
        # Python would die of the signal, whatever its status was to be.
        atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)


def _answer(number: int, frame: Optional[FrameType]) -> None:
    if os.getpid() != _State.owner:
        return
    now = time.monotonic()
    imports = _imports(frame)
    _State.waits = (_State.waits or now) if imports else 0.0
    if not _State.working or imports and now - _State.waits > PATIENCE:
        tell()
        os._exit(STATUS)
    if imports:  # Such code may swallow what is raised in it.
        _repeat()
    elif now - _State.last >= TWICE:
        _State.last = now
        raise KeyboardInterrupt


def _repeat() -> None:
    """Come back to a Ctrl-C in a moment."""
    signal.setitimer(signal.ITIMER_REAL, AGAIN)


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
    told, _State.told = _State.told, True
    if not told and os.environ.get('RANK', '0') == '0':
        # A progress bar may have hidden the cursor.
        shown = '\x1b[?25h' if os.isatty(2) else ''
        # Past Python's own buffer, which may be what was interrupted.
        with suppress(OSError):
            os.write(2, f'{shown}\nInterrupted: {_State.hint}\n'.encode())


@contextmanager
def working(hint: str) -> Iterator[None]:
    """Raise KeyboardInterrupt on Ctrl-C, so that work can clean up.

    An exception in a place where Python drops exceptions, such as a
    finalizer, is raised again where it does not.

    Args:
        hint (str): How to go on once there is something to go on with, as
            :func:`resumable` says, told by :func:`tell`.
    """
    _State.later = hint or _State.hint
    _State.working, _State.told = True, False
    _State.begun = time.monotonic()
    hook = sys.unraisablehook
    if signal.getsignal(signal.SIGINT) is _answer:
        sys.unraisablehook = partial(_raised_in_vain, hook)
    try:
        yield
    finally:
        _State.working = False
        sys.unraisablehook = hook


def resumable() -> None:
    """From now on there is something to go on with."""
    _State.hint = _State.later


def _raised_in_vain(hook: Callable[[Any], Any], unraisable: Any) -> None:
    """Repeat a Ctrl-C that a finalizer swallowed, when it is over."""
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        _State.last = -TWICE
        _repeat()
    else:
        hook(unraisable)
