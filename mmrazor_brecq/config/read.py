"""Configs found by name, and read with nothing run that YAML holds."""

from __future__ import annotations

import difflib
import os
import os.path as osp
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Optional

from mmengine.config import Config

from .safe import PLAIN, check_file, plain_handlers

PACKAGE = Path(__file__).resolve().parents[1]
#: What the names of configs end with.
CONFIGS = '.py', *PLAIN
#: Configs that one may inherit, all generations together.
MOST_BASES = 100


def read_file(path: str) -> Config:
    """Read any config, with nothing that YAML or JSON holds run.

    Args:
        path (str): As for :func:`read_config`.

    Raises:
        FileNotFoundError: If it, or one that it inherits, is not there.
        ValueError: If it cannot be read; the message names the place.
    """
    found = find_config(path)
    with plain_handlers(), _bases():
        try:
            return Config.fromfile(found)
        except Exception as error:
            if is_told(error) and (
                path in str(error) or not isinstance(error, ValueError)
            ):
                raise
            raise ValueError(
                f'The config {path!r} cannot be read: {_place(error)}'
                f'{type(error).__name__}: {error}'
            ) from error


def is_told(error: BaseException, *tellers: str) -> bool:
    """Whether an error is a user's mistake in words that help.

    It is one where this package or mmengine says so. An error from
    elsewhere, such as code of the user's own, is not.

    Args:
        error (BaseException): As it was raised.
        *tellers (str): Other packages whose words count.
    """
    if not isinstance(error, (ValueError, KeyError, OSError, ImportError)):
        return False
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    root = frame.f_globals.get('__name__', '').split('.')[0]
    return root in (PACKAGE.name, 'mmengine', *tellers)


def _place(error: BaseException) -> str:
    """Return file and line of a config whose code raised an error."""
    place = ''
    for frame, line in traceback.walk_tb(error.__traceback__):
        if '_base_' in frame.f_globals:  # mmengine runs configs with it.
            place = f'{frame.f_code.co_filename}, line {line}: '
    return place


@contextmanager
def _bases() -> Iterator[None]:
    """Check each config that another inherits before mmengine opens it."""
    seen: list[str] = []

    def get_cfg_path(name: str, filename: str) -> tuple[str, Optional[str]]:
        seen.append(name)
        if len(seen) > MOST_BASES:
            raise ValueError(
                f'{filename!r} inherits more than {MOST_BASES} configs: does '
                'one of them inherit itself?'
            )
        path = find_config(name, filename)
        return path, name.partition('::')[0] if '::' in name else None

    before = Config._get_cfg_path
    # mmengine asks it for the path of every `_base_`, and nothing else.
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
        FileNotFoundError: If it is not there; the message names those of
            similar names.
        ValueError: If it is none.
    """
    if not isinstance(name, str):
        raise ValueError(
            f'_base_ of {heir!r} holds {name!r}, expected names of configs'
        )
    asks = '' if heir is None else f' (`_base_` of {heir!r})'
    package, outside, inner = name.partition('::')
    if outside and not osp.exists(name):
        folder = _configs_of(package, name)
        path = osp.join(folder, inner)
    else:
        folder = '' if heir is None else osp.dirname(heir)
        path = osp.join(folder, osp.expanduser(name))
    if not osp.exists(path):
        if osp.isfile(f'{path}.py'):
            return f'{path}.py'
        raise FileNotFoundError(
            f'No config at {name!r}{asks}{_similar(name, path)}'
        )
    if not path.endswith(CONFIGS):
        raise ValueError(
            f'{name!r}{asks} is no config, expected a name with '
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
        places = spec.submodule_search_locations or []
        folders = [Path(place, '.mim', 'configs') for place in places]
    for folder in folders:
        if folder.is_dir():
            return str(folder)
    raise FileNotFoundError(
        f'No config at {name!r}: the package {package!r} has no configs'
    )


def _similar(name: str, path: str) -> str:
    """Return what may have been meant, as the end of a message."""
    package, outside, _ = name.partition('::')
    ours = _configs_of(PACKAGE.name, name) if not outside else ''
    tops = {package: _configs_of(package, name)} if outside else {}
    names = [
        f'{scope}::{file.relative_to(top).as_posix()}'
        for scope, top in (tops or {PACKAGE.name: ours}).items()
        for file in Path(top).rglob('*')
        if file.suffix in CONFIGS
    ]
    folder = osp.dirname(path) or '.'
    if not outside and osp.isdir(folder):
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
