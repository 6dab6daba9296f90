"""Find configs by name and read them, without running what YAML names."""

from __future__ import annotations

import difflib
import errno
import os
import os.path as osp
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Optional

from mmengine.config import Config

from .safe import PLAIN, check_file, plain_handlers

PACKAGE = Path(__file__).resolve().parents[1]
#: Endings of the names of configs.
CONFIGS = '.py', *PLAIN
#: Errors of a disk without room.
FULL = errno.ENOSPC, errno.EDQUOT, errno.EFBIG
#: Largest number of configs that one inherits, directly and indirectly.
MAX_BASES = 100


def read_file(path: str) -> Config:
    """Read any config, without running what YAML or JSON names.

    Args:
        path (str): See :func:`read_config`.

    Raises:
        FileNotFoundError: If the config, or one that it inherits, does not
            exist.
        OSError: If the folder of temporary files is full.
        ValueError: If it cannot be read; the message names file and line.
    """
    found = find_config(path)
    with plain_handlers(), _bases():
        try:
            return Config.fromfile(found)
        except Exception as error:
            if getattr(error, 'errno', None) in FULL:
                raise OSError(
                    f'The config {path!r} cannot be read: mmengine copies it '
                    f'into {tempfile.gettempdir()!r} first, where there is no '
                    'room left; free some, or name another folder in TMPDIR'
                ) from error
            if is_user_error(error) and (
                path in str(error) or not isinstance(error, ValueError)
            ):
                raise
            raise ValueError(
                f'The config {path!r} cannot be read: {_location(error)}'
                f'{type(error).__name__}: {error}'
            ) from error


def is_user_error(error: BaseException, *packages: str) -> bool:
    """Return whether an error is a user's mistake, with a helpful message.

    That is assumed of errors that this package or mmengine raises. An error
    from elsewhere, such as the user's own code, needs its traceback.

    Args:
        error (BaseException): The error.
        *packages (str): Names of other packages whose errors count.
    """
    if not isinstance(error, (ValueError, KeyError, OSError, ImportError)):
        return False
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    root = frame.f_globals.get('__name__', '').split('.')[0]
    return root in (PACKAGE.name, 'mmengine', *packages)


def _location(error: BaseException) -> str:
    """Return file and line of a config whose code raised an error."""
    location = ''
    for frame, line in traceback.walk_tb(error.__traceback__):
        # mmengine runs configs with `_base_` among their globals.
        if '_base_' in frame.f_globals:
            location = f'{frame.f_code.co_filename}, line {line}: '
    return location


@contextmanager
def _bases() -> Iterator[None]:
    """Let mmengine open an inherited config only after we checked it."""
    seen: list[str] = []

    def get_cfg_path(name: str, filename: str) -> tuple[str, Optional[str]]:
        seen.append(name)
        if len(seen) > MAX_BASES:
            raise ValueError(
                f'{filename!r} inherits more than {MAX_BASES} configs: does '
                'one of them inherit itself?'
            )
        path = find_config(name, filename)
        return path, name.partition('::')[0] if '::' in name else None

    before = Config._get_cfg_path
    # mmengine calls this for each `_base_`, and for nothing else.
    Config._get_cfg_path = staticmethod(get_cfg_path)
    try:
        yield
    finally:
        Config._get_cfg_path = staticmethod(before)


def find_config(name: str, heir: Optional[str] = None) -> str:
    """Find a config file.

    Args:
        name (str): A path, or ``package::path`` of a config of an installed
            package.
        heir (str, optional): The config that inherits it; a relative path
            starts at its folder.

    Returns:
        str: Path of a regular file.

    Raises:
        FileNotFoundError: If it does not exist; the message lists similar
            names.
        ValueError: If it is no config.
    """
    if not isinstance(name, str):
        raise ValueError(
            f'_base_ of {heir!r} holds {name!r}, expected names of configs'
        )
    source = '' if heir is None else f' (`_base_` of {heir!r})'
    package, separator, inner = name.partition('::')
    if separator and not osp.exists(name):
        folder = _configs_of(package, name)
        path = osp.join(folder, inner)
    else:
        folder = '' if heir is None else osp.dirname(heir)
        path = osp.join(folder, osp.expanduser(name))
    if not osp.exists(path):
        if osp.isfile(f'{path}.py'):
            return f'{path}.py'
        raise FileNotFoundError(
            f'No config at {name!r}{source}{_similar(name, path)}'
        )
    if not path.endswith(CONFIGS):
        raise ValueError(
            f'{name!r}{source} is no config, expected a name with '
            f'{", ".join(CONFIGS)}: the config comes before the checkpoint'
        )
    check_file(path)
    return path


def _configs_of(package: str, name: str) -> str:
    """Find the folder of a package's configs."""
    if package == PACKAGE.name:
        folders = [PACKAGE / '.mim' / 'configs', PACKAGE.parent / 'configs']
    else:
        spec = find_spec(package) if package.isidentifier() else None
        if spec is None:
            raise FileNotFoundError(
                f'No config at {name!r}: the package {package!r} is not '
                'installed'
            )
        roots = spec.submodule_search_locations or []
        folders = [Path(root, '.mim', 'configs') for root in roots]
    for folder in folders:
        if folder.is_dir():
            return str(folder)
    raise FileNotFoundError(
        f'No config at {name!r}: the package {package!r} has no configs'
    )


def _similar(name: str, path: str) -> str:
    """Return the end of a message that asks whether a similar name is meant.

    Args:
        name (str): The name that was given.
        path (str): The path that it stands for.
    """
    package, separator, _ = name.partition('::')
    scope = package if separator else PACKAGE.name
    root = _configs_of(scope, name)
    names = [
        f'{scope}::{file.relative_to(root).as_posix()}'
        for file in Path(root).rglob('*')
        if file.suffix in CONFIGS
    ]
    folder = osp.dirname(path) or '.'
    if not separator and osp.isdir(folder):
        names += [
            osp.join(osp.dirname(name), other)
            for other in os.listdir(folder)
            if other.endswith(CONFIGS)
        ]
    by_end = {osp.basename(other): other for other in names}
    close = difflib.get_close_matches(osp.basename(name), by_end, 3, 0.7)
    if not close:
        return ''
    return ', did you mean ' + ' or '.join(repr(by_end[c]) for c in close)
