"""Lock a folder, so that one run at a time works in it."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import os.path as osp
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from mmengine.logging import print_log

#: Files that this process has locked. The system would let a second thread
#: of the same process take the same lock.
_locked: set[str] = set()


@contextmanager
def locked(path: str, cure: str) -> Iterator[None]:
    """Return a context in which only this process has locked a file.

    The operating system releases the lock when the process ends, even if it
    is killed. Child processes do not inherit the lock, so a child that
    outlives its parent does not block the next run.

    Args:
        path (str): The lock file. It says which process has locked it, and
            is removed afterwards.
        cure (str): What to do if another process has locked it.

    Raises:
        ValueError: If another process has locked it, with its number and
            machine.
    """
    path = osp.realpath(path)
    if path in _locked:
        raise ValueError(_refusal(path, _this_process(), cure))
    descriptor = _lock(path, cure)
    _locked.add(path)
    try:
        yield
    finally:
        _locked.discard(path)
        if _is_current(descriptor, path):
            os.remove(path)
        os.close(descriptor)


def _lock(path: str, cure: str) -> int:
    """Open and lock the file, and return its descriptor."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in (errno.EACCES, errno.EAGAIN):
                    holder = os.pread(descriptor, 4096, 0)
                    raise ValueError(_refusal(path, holder, cure)) from error
                print_log(
                    f'{path}: this file system has no locks '
                    f'({error.strerror}); start no second run in the folder',
                    'current',
                    logging.WARNING,
                )
            if not _is_current(descriptor, path):  # Another run removed it.
                os.close(descriptor)
                continue
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, _this_process(), 0)
            return descriptor
        except BaseException:
            os.close(descriptor)
            raise


def _is_current(descriptor: int, path: str) -> bool:
    """Return whether an open file is still the one at the path."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _this_process() -> bytes:
    process = dict(pid=os.getpid(), host=socket.gethostname())
    return json.dumps(process).encode()


def _refusal(path: str, holder: bytes, cure: str) -> str:
    """Return the message about a folder that another process uses."""
    try:
        known = json.loads(holder)
        who = f'process {int(known["pid"])} on {str(known["host"])[:80]!r}'
    except (ValueError, TypeError, KeyError):
        who = 'another process'
    return f'{osp.dirname(path)!r} is in use by {who}: {cure}'
