"""Answer Ctrl-C in a tool, at any moment, with one line on how to continue."""

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
from typing import TYPE_CHECKING, Optional

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

PACKAGE = Path(__file__).resolve().parent
#: Exit status of a process after Ctrl-C, as shells use it.
STATUS = 130
#: Seconds in which a second Ctrl-C counts as one with the first.
REPEAT_SECONDS = 1.0
#: Seconds after which a signal that came at a bad moment is sent again.
RETRY_SECONDS = 0.02
#: Largest number of seconds to wait for the end of an import.
IMPORT_SECONDS = 2.0


class _State:
    """State of the process that the signal handler uses.

    Attributes:
        hint (str): How to continue, as it is printed.
        resume_hint (str): How to continue once the run can be resumed.
        working (bool): Whether the work has begun and not ended.
        printed (bool): Whether the hint is printed.
        begun (float): Time at which the work began, in seconds.
        last (float): Time of the last Ctrl-C that stopped the work.
        importing (FrameType): Outermost frame of the import during which
            the last signal came, None if there was none.
        import_met (float): Time at which a signal first came during it.
        owner (int): Identifier of the process that answers Ctrl-C.
    """

    hint = resume_hint = 'give the same command again'
    working = printed = False
    begun, last, import_met = 0.0, -REPEAT_SECONDS, 0.0
    importing: Optional[FrameType] = None
    owner = os.getpid()


def is_tool() -> bool:
    """Return whether this process runs one of the tools."""
    script = Path(sys.argv[0] if sys.argv else '')
    folders = PACKAGE / '.mim' / 'tools', PACKAGE.parent / 'tools'
    return script.stem == 'mmrazor-brecq' or (
        script.suffix == '.py'
        and script.resolve().parent in [f.resolve() for f in folders]
    )


def install() -> None:
    """Install the signal handler, if this process runs a tool.

    Before and after the work there is nothing to clean up, and the handler
    ends the process at once. Processes that the tool starts ignore Ctrl-C:
    the tool answers it.
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
        # This runs after all other exit functions, when nothing is left to
        # interrupt. Otherwise the signal would change the exit status.
        atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)


def _answer(number: int, frame: Optional[FrameType]) -> None:
    """Handle the signal: end the process, or raise KeyboardInterrupt.

    An import could swallow the exception. So the handler waits for its end,
    but not longer than :data:`IMPORT_SECONDS`.
    """
    if os.getpid() != _State.owner:
        return
    now = time.monotonic()
    importing = _outermost_import(frame)
    if importing is not _State.importing:
        _State.importing, _State.import_met = importing, now
    stuck = importing is not None and now - _State.import_met > IMPORT_SECONDS
    if not _State.working or stuck:
        print_hint()
        os._exit(STATUS)
    if importing:
        _retry_soon()
    elif now - _State.last >= REPEAT_SECONDS:
        _State.last = now
        raise KeyboardInterrupt


def _retry_soon() -> None:
    """Let the handler be called again in a moment."""
    signal.setitimer(signal.ITIMER_REAL, RETRY_SECONDS)


def _outermost_import(frame: Optional[FrameType]) -> Optional[FrameType]:
    """Return the frame of the import that all others are inside, if any."""
    found = None
    while frame is not None:
        if frame.f_code.co_filename.startswith('<frozen importlib'):
            found = frame
        frame = frame.f_back
    return found


def was_interrupted() -> bool:
    """Return whether the work was interrupted.

    That holds even if another exception has replaced KeyboardInterrupt.
    """
    return _State.last > _State.begun


def print_hint() -> None:
    """Print how to continue, once, in the first of several processes."""
    printed, _State.printed = _State.printed, True
    if not printed and os.environ.get('RANK', '0') == '0':
        # A progress bar may have hidden the cursor.
        show_cursor = '\x1b[?25h' if os.isatty(2) else ''
        # Not through `sys.stderr`, whose buffer may be locked by the code
        # that was interrupted.
        with suppress(OSError):
            os.write(
                2, f'{show_cursor}\nInterrupted: {_State.hint}\n'.encode()
            )


@contextmanager
def working(hint: str) -> Iterator[None]:
    """Raise KeyboardInterrupt on Ctrl-C, so that the work can clean up.

    If Python drops the exception, as it does in finalizers, it is raised
    again a moment later.

    Args:
        hint (str): How to continue after :func:`set_resumable` was called.
    """
    _State.resume_hint = hint or _State.hint
    _State.working, _State.printed = True, False
    _State.begun = time.monotonic()
    hook = sys.unraisablehook
    if signal.getsignal(signal.SIGINT) is _answer:
        sys.unraisablehook = partial(_retry_dropped, hook)
    try:
        yield
    finally:
        _State.working = False
        sys.unraisablehook = hook


def set_resumable() -> None:
    """Note that the run has saved something and can be resumed from now on."""
    _State.hint = _State.resume_hint


def _retry_dropped(
    hook: Callable[[UnraisableHookArgs], object],
    unraisable: UnraisableHookArgs,
) -> None:
    """Handle Ctrl-C again if a finalizer dropped its exception."""
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        _State.last = -REPEAT_SECONDS
        _retry_soon()
    else:
        hook(unraisable)
