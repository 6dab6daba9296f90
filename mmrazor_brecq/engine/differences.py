"""Say how a run differs from an earlier one in its folder."""

from __future__ import annotations

import ast
import os.path as osp
from collections.abc import Iterable, Iterator, Mapping
from glob import escape, glob
from typing import Any, Callable

from mmengine.config import Config

from ..config.safe import check_regular

#: Returns the keys of the config that differ, with their values.
Changes = Callable[[], list[str]]

#: Keys of a config that make a run another one.
IDENTIFYING = ('model', 'test_dataloader', 'test_evaluator', 'test_cfg')
#: Number of differences that a message shows.
SHOWN = 4


def difference(
    identity: Mapping[str, str], before: Mapping[str, str], changes: Changes
) -> str:
    """Return in words what an earlier run had that this one has not.

    Args:
        identity (dict): Hashes of the config, the checkpoint and the
            calibration images of this run.
        before (dict): Those of the earlier run.
        changes (callable): Returns what differs between the configs.
    """
    parts = [key for key in identity if identity[key] != before.get(key)]
    found = changes() if 'config' in parts else []
    more = len(found) - SHOWN
    shown = '; '.join(found[:SHOWN]) + (f'; {more} more' if more > 0 else '')
    words = f'had another {" and ".join(parts)} than this one'
    return f'{words} ({shown})' if shown else words


def config_changes(folder: str, name: str, cfg: Config) -> list[str]:
    """Return the keys of a run's config that differ, with both values.

    Args:
        folder (str): Folder of an earlier run.
        name (str): File name of this run's config. If the folder has none
            of that name, its only one counts.
        cfg (Config): The config of this run.
    """
    path = osp.join(folder, name)
    others = glob(osp.join(escape(folder), '*.py'))
    if not osp.isfile(path) and len(others) == 1:
        path = others[0]
    try:
        before = _read_plain(path)
    except (OSError, ValueError, SyntaxError):  # Nothing is known of it.
        return []
    old, new = (dict(_identifying(c)) for c in (before, cfg.to_dict()))
    return [
        f'{key} was {old.get(key)!r:.60}, and is {new.get(key)!r:.60}'
        for key in {**old, **new}
        if old.get(key) != new.get(key)
    ]


def _read_plain(path: str) -> dict[str, Any]:
    """Return the values of a config that a run wrote; no code in it runs.

    Raises:
        OSError, ValueError, SyntaxError: If it is no such config.
    """
    check_regular(path, 'a config')
    with open(path, encoding='utf-8') as file:
        lines = ast.parse(file.read()).body
    return {
        target.id: ast.literal_eval(line.value)
        for line in lines
        if isinstance(line, ast.Assign)
        for target in line.targets
        if isinstance(target, ast.Name)
    }


def _identifying(
    content: Mapping[str, Any],
) -> Iterator[tuple[str, object]]:
    """Yield the values that make a run another one, with their keys."""
    for key in IDENTIFYING:
        yield from _flat(content.get(key), key)
    yield 'randomness.seed', (content.get('randomness') or {}).get('seed')


def _flat(content: object, path: str) -> Iterator[tuple[str, object]]:
    """Yield the values of a config, each with its dotted key."""
    pairs: Iterable[tuple[object, object]] = ()
    if isinstance(content, Mapping):
        pairs = content.items()
    elif isinstance(content, (list, tuple)):
        pairs = enumerate(content)
    else:
        yield path, content
    for name, value in pairs:
        yield from _flat(value, f'{path}.{name}')
