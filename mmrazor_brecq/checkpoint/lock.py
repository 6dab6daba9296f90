"""One run in a folder at a time."""

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

#: Locks that this process holds: the system's are one for all its threads.
_held: set[str] = set()


@contextmanager
def locked(path: str, cure: str) -> Iterator[None]:
    """Within it this process alone holds a lock.

    The lock is the system's, which drops it when the process ends, however
    it ends; the file says who holds it. Children of the process do not hold
    it, so those that outlive a killed one are in nobody's way.

    Args:
        path (str): Its file, which is gone afterwards.
        cure (str): What to do where another process holds it.

    Raises:
        ValueError: If another one holds it, with its number and machine.
    """
    path = osp.realpath(path)
    if path in _held:
        raise ValueError(_refusal(path, _me(), cure))
    descriptor = _take(path, cure)
    _held.add(path)
    try:
        yield
    finally:
        _held.discard(path)
        if _is_there(descriptor, path):
            os.remove(path)
        os.close(descriptor)


def _take(path: str, cure: str) -> int:
    """Open the file and lock it, or say who has."""
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
                    f'{path}: this file system knows no locks '
                    f'({error.strerror}); let no second run into the folder',
                    'current',
                    logging.WARNING,
                )
            if not _is_there(descriptor, path):  # Its holder just removed it.
                os.close(descriptor)
                continue
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, _me(), 0)
            return descriptor
        except BaseException:
            os.close(descriptor)
            raise


def _is_there(descriptor: int, path: str) -> bool:
    """Whether the file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _me() -> bytes:
    me = dict(pid=os.getpid(), host=socket.gethostname())
    return json.dumps(me).encode()


def _refusal(path: str, holder: bytes, cure: str) -> str:
    try:
        known = json.loads(holder)
        who = f'process {int(known["pid"])} on {str(known["host"])[:80]!r}'
    except (ValueError, TypeError, KeyError):
        who = 'another process'
    return f'{osp.dirname(path)!r} is in use by {who}: {cure}'
