"""Write files so that each is whole or absent, and none is ever lost."""

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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any, Union

import torch
from mmengine.logging import print_log

#: Temporary names of the files that this package writes.
TEMPORARY = re.compile(
    r'(?:.+\.(?:pth|safetensors|json|py|csv|onnx|lock|html)|progress(?:-.*)?'
    r'|.+\.progress-.*)\.(\d+)\.tmp'
)

#: Bytes by which an archive may grow when it is unpacked. torch does not
#: compress tensors, but TorchScript compresses its code.
MAX_EXPANSION = 2**26

#: Folders in which unfinished runs keep their finished units.
PROGRESS = re.compile(r'progress|.+\.progress-\w+-\dbits')


def write_whole(path: str, content: Union[bytes, str]) -> None:
    """Write a file under a temporary name, then rename it.

    The file and its folder are flushed to the disk before this returns, so
    the file survives a loss of power.

    Args:
        path (str): The file. Its folder is created if it does not exist.
        content (bytes | str): The whole content.

    Raises:
        OSError: If the file cannot be written. The message has its path.
            The temporary file is removed, and an earlier file at this path
            is unchanged.
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
    """Flush a folder's list of names to the disk, if the system can."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # The folder may be writable, but not readable.
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def save_tensors(content: object, path: str) -> None:
    """Save tensors and plain Python values as a file of torch."""
    write_whole(path, tensor_bytes(content))


def tensor_bytes(content: object) -> bytes:
    """Return the bytes of a file of torch, for tensors and plain Python."""
    # In memory, since torch does not report a full disk as an OSError.
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def load_tensors(source: Union[str, bytes], trust: bool = False) -> Any:
    """Load what :func:`save_tensors` or ``torch.save`` wrote.

    Args:
        source (str | bytes): The path of the file, or its content.
        trust (bool): Whether to run code that the file may contain.

    Returns:
        Any: The content of the file, with all tensors on the CPU.

    Raises:
        ValueError: If the file is neither an archive nor a pickle, or if
            it would need far more memory than its size.
    """
    with _open(source) as file:
        if not file.read(2).startswith((b'PK', b'\x80')):
            raise ValueError('neither an archive nor a pickle')
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        if zipfile.is_zipfile(file):
            _check_archive(file, size)
        file.seek(0)
        return torch.load(file, 'cpu', weights_only=not trust)


def _open(source: Union[str, bytes]) -> IO[bytes]:
    """Open a file by its path, or by its content."""
    return (
        open(source, 'rb') if isinstance(source, str) else io.BytesIO(source)
    )


def _check_archive(file: IO[bytes], size: int) -> None:
    """Refuse an archive that unpacks to far more than its size in bytes."""
    with zipfile.ZipFile(file) as archive:
        claimed = sum(entry.file_size for entry in archive.infolist())
    if claimed > size + MAX_EXPANSION:
        raise ValueError(
            f'its {size:,} bytes claim to hold {claimed:,}, and torch '
            'compresses no tensors'
        )


def save_json(content: Mapping[str, object], path: str) -> None:
    """Save plain Python values as JSON, a list of numbers on one line."""
    text = json.dumps(content, indent=2)
    # No string has a line break in JSON, so nothing in one is matched.
    text = re.sub(
        r'\[\n[^][{}"]*\]',
        lambda found: (
            re.sub(r'\s*\n\s*', ' ', found[0])
            .replace('[ ', '[')
            .replace(' ]', ']')
        ),
        text,
    )
    write_whole(path, text)


def checksum_of(content: object) -> str:
    """Return the SHA-256 of a value written as JSON, in hexadecimal."""
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the pairs of a JSON object as a dict.

    For the ``object_pairs_hook`` of :func:`json.loads`, which by itself
    keeps the last value of a key that is given twice.

    Raises:
        ValueError: If a key is given twice.
    """
    content = dict(pairs)
    if len(content) != len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f'the key {repeated!r:.80} is given twice')
    return content


def keep_older(path: str) -> None:
    """Rename an existing file or folder to the next free number."""
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
    """Write a text, and keep an older file with another text.

    Args:
        path (str): The file. An older one is renamed by
            :func:`keep_older`, unless it has the same text.
        text (str): The whole content.

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
    """Remove a folder.

    It is renamed first, so a process that is killed here never leaves half
    a folder under the real name. :func:`remove_leftovers` removes the rest.
    """
    temporary = f'{osp.normpath(folder)}.{os.getpid()}.tmp'
    try:
        os.rename(folder, temporary)
    except FileNotFoundError:
        return
    shutil.rmtree(temporary, ignore_errors=True)


def remove_leftovers(folder: str) -> None:
    """Remove the temporary files and folders of killed processes.

    Args:
        folder (str): The folder of a run. Its folders of unfinished runs
            are cleaned, too.
    """
    for entry in list(os.scandir(folder)) if osp.isdir(folder) else []:
        found = TEMPORARY.fullmatch(entry.name)
        if PROGRESS.fullmatch(entry.name) and entry.is_dir():
            remove_leftovers(entry.path)
        if not found or is_running(int(found[1])):
            continue
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path, ignore_errors=True)
        else:
            os.remove(entry.path)


def is_running(process: int) -> bool:
    """Return whether a process of this machine is running."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # It runs, and belongs to another user.
        pass
    return True


@contextmanager
def explain_write_errors(folder: str, cure: str) -> Iterator[None]:
    """Return a context in which write errors say how to continue.

    Args:
        folder (str): The folder that contains all files of the run.
        cure (str): What to do once the folder is writable again.

    Raises:
        OSError: If the disk is full, or if the folder was removed or is no
            longer writable.
    """
    try:
        yield
    except OSError as error:
        absolute = osp.abspath(folder)
        texts = [
            str(text)
            for text in (error.filename, error.filename2, error)
            if text is not None
        ]
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        broken = error.errno in (
            *(errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO),
            *(errno.ENOENT, errno.ENOTDIR, errno.ESTALE),
        )
        inside = any(absolute in text or folder in text for text in texts)
        if not full and not (broken and inside):
            raise
        if full:
            problem = 'the disk is full'
        elif osp.isdir(folder):
            problem = f'it is no longer writable ({error.strerror})'
        else:
            problem = 'it was removed'
        explained = OSError(
            f'The run in {folder!r} stopped: {problem}; {cure}'
        )
        explained.errno = error.errno
        raise explained from error
