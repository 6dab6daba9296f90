"""Files that are either whole or not there, and never lost."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import os.path as osp
import re
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Union

import torch
from mmengine.logging import print_log

#: What this package writes, under the name that it has until it is whole.
TEMPORARY = re.compile(
    r'(?:.+\.(?:pth|safetensors|json|py|csv|onnx|lock|html)|progress(?:-.*)?'
    r'|.+\.progress-.*)\.(\d+)\.tmp'
)

#: Bytes that an archive may hold beyond its size: torch compresses no
#: tensors, but TorchScript its code.
COMPRESSED = 2**26

#: Folders in which unfinished runs keep what is finished.
PROGRESS = re.compile(r'progress|.+\.progress-\w+-\dbits')


def write_whole(path: str, content: Union[bytes, str]) -> None:
    """Write a file under a temporary name, and rename it once it is safe.

    It and its folder are on the disk when this returns, so that it outlives
    a loss of power, too.

    Args:
        path (str): Where the file shall be; its folder is made.
        content (bytes | str): All that is to be in it.

    Raises:
        OSError: If it cannot be written, with its path; nothing is left of
            it, and what was there before is there still.
    """
    if isinstance(content, str):
        content = content.encode()
    folder = osp.dirname(osp.abspath(path))
    temporary = f'{path}.{os.getpid()}.tmp'
    try:
        os.makedirs(folder, exist_ok=True)
        try:
            with open(temporary, 'wb') as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            if osp.lexists(temporary):
                os.remove(temporary)
            raise
        _sync_folder(folder)
    except OSError as error:
        raise OSError(
            error.errno, f'Cannot write {path!r} ({error.strerror})'
        ) from error


def _sync_folder(folder: str) -> None:
    """Put names on the disk, where the system knows how."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # Such as a folder that may be written but not read.
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def save_tensors(content: Any, path: str) -> None:
    """Save tensors and plain Python."""
    write_whole(path, tensor_bytes(content))


def tensor_bytes(content: Any) -> bytes:
    """What a file of tensors and plain Python has in it."""
    # In memory, since torch reports a full disk as an error of its own.
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def load_tensors(source: Union[str, bytes], trust: bool = False) -> Any:
    """Undo :func:`save_tensors`, or read a file that torch wrote.

    Args:
        source (str | bytes): The file, or what is in it.
        trust (bool): Whether to run code that it may hold.

    Returns:
        Any: Its content, on the CPU.

    Raises:
        ValueError: If it is neither an archive nor a pickle, or would be
            far larger in memory than it is.
    """
    file: Any = open(source, 'rb') if isinstance(source, str) else None
    with file or io.BytesIO(source) as opened:  # type: ignore[arg-type]
        if not opened.read(2).startswith((b'PK', b'\x80')):
            raise ValueError('neither an archive nor a pickle')
        size = opened.seek(0, os.SEEK_END)
        opened.seek(0)
        if zipfile.is_zipfile(opened):
            _check_archive(opened, size)
        opened.seek(0)
        return torch.load(opened, 'cpu', weights_only=not trust)


def _check_archive(file: Any, size: int) -> None:
    """Refuse an archive that unpacks to far more than it is."""
    with zipfile.ZipFile(file) as archive:
        claimed = sum(entry.file_size for entry in archive.infolist())
    if claimed > size + COMPRESSED:
        raise ValueError(
            f'its {size:,} bytes claim to hold {claimed:,}, and torch '
            'compresses no tensors'
        )


def save_json(content: dict[str, Any], path: str) -> None:
    """Save plain Python as JSON."""
    write_whole(path, json.dumps(content, indent=2))


def checksum_of(content: Any) -> str:
    """SHA-256 of plain Python, as JSON has it, in hexadecimal digits."""
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a dict of the pairs of a JSON object that names nothing twice.

    For the ``object_pairs_hook`` of :func:`json.loads`.

    Raises:
        ValueError: If it does.
    """
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f'{twice!r:.80} is there twice')
    return found


def keep_older(path: str) -> None:
    """Move what lies at ``path`` aside, under the next free number."""
    if not osp.exists(path):
        return
    stem, ending = osp.splitext(path)
    number = 1
    while osp.exists(f'{stem}.{number}{ending}'):
        number += 1
    os.rename(path, f'{stem}.{number}{ending}')
    print_log(
        f'{path} was there from an earlier run: it is now '
        f'{stem}.{number}{ending}',
        'current',
    )


def write_kept(path: str, text: str) -> None:
    """Write a text; what lies there and says something else is moved aside.

    Args:
        path (str): Where the file shall be.
        text (str): All that is to be in it.

    Raises:
        OSError: As for :func:`write_whole`.
    """
    if osp.isfile(path):
        with open(path, 'rb') as file:
            if file.read() == text.encode():
                return
    keep_older(path)
    write_whole(path, text)


def remove_folder(folder: str) -> None:
    """Remove a folder: at every moment it is whole, or gone.

    What a killed process leaves of it has a temporary name; see
    :func:`sweep`.
    """
    temporary = f'{osp.normpath(folder)}.{os.getpid()}.tmp'
    try:
        os.rename(folder, temporary)
    except FileNotFoundError:
        return
    shutil.rmtree(temporary, ignore_errors=True)


def sweep(folder: str) -> None:
    """Remove what killed processes have left half written in a folder.

    Args:
        folder (str): That of a run: those in it, and in what it keeps of
            unfinished runs.
    """
    for entry in list(os.scandir(folder)) if osp.isdir(folder) else []:
        found = TEMPORARY.fullmatch(entry.name)
        if PROGRESS.fullmatch(entry.name) and entry.is_dir():
            sweep(entry.path)
        if not found or is_running(int(found[1])):
            continue
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path, ignore_errors=True)
        else:
            os.remove(entry.path)


def is_running(process: int) -> bool:
    """Whether a process of this machine lives."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # That of another user.
        pass
    return True


@contextmanager
def told_of_folder(folder: str, cure: str) -> Iterator[None]:
    """Within it a failure to write says where, and how to go on.

    Args:
        folder (str): All that is written lies in it.
        cure (str): What to do once the folder can be written again.

    Raises:
        OSError: If the disk is full, the folder vanished or may no longer
            be written.
    """
    try:
        yield
    except OSError as error:
        place = osp.abspath(folder)
        named = [
            str(name)
            for name in (error.filename, error.filename2, error)
            if name is not None
        ]
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        broken = error.errno in (
            *(errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO),
            *(errno.ENOENT, errno.ENOTDIR, errno.ESTALE),
        )
        there = any(place in text or folder in text for text in named)
        if not full and not (broken and there):
            raise
        what = (
            'there is no room left'
            if full
            else f'it cannot be written any more ({error.strerror})'
            if osp.isdir(folder)
            else 'it is gone'
        )
        told = OSError(f'The run in {folder!r} stopped: {what}; {cure}')
        told.errno = error.errno
        raise told from error
