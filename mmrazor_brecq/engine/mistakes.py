"""What constructors of other packages refuse, as mistakes of a config."""

from __future__ import annotations

import inspect
import os
import re
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from mmengine.config import Config

from ..config.load import find_key
from ..validation import did_you_mean

UNKNOWN_KEY = re.compile(r"unexpected keyword argument '(\w+)'")
MISSING_KEY = re.compile(r'missing \d+ required')
UNKNOWN_TYPE = re.compile(r'(\S+) is not in the \S+ registry')


@contextmanager
def construction(cfg: Config) -> Iterator[None]:
    """Makes unknown types, and keys too many or too few, errors of a config.

    So it does a file that is not there. Any other error is a constructor's
    own.

    Args:
        cfg (Config): What is built.

    Raises:
        FileNotFoundError: If a file is not there, with the path of the key
            that asks for it.
        ValueError: In place of the others, with the path of the key.
    """
    try:
        yield
    except FileNotFoundError as error:
        path = error.filename
        key = find_key(cfg, path) if isinstance(path, str) else None
        if key is None:
            raise
        raise FileNotFoundError(
            f'{error.strerror}: {path!r} (in {os.getcwd()}), which {key} '
            'asks for: put it there, or name its place in the config'
        ) from error
    except (TypeError, KeyError) as error:
        message = _as_mistake(cfg.to_dict(), error)
        if message is None:
            raise
        raise ValueError(message) from error


def _as_mistake(cfg: dict[str, Any], error: Exception) -> Any:
    """What was wrong in the config, None if nothing was."""
    said = str(error.args[0]) if error.args else ''
    if found := UNKNOWN_TYPE.search(said):
        name = found[1].strip('\'"')
        path = next(_paths(cfg, 'type', name), 'type')
        types = _known_types(_last(error, 'registry'))
        return (
            f'{path}={name!r} is registered nowhere{did_you_mean(name, types)}'
        )
    if found := UNKNOWN_KEY.search(said):
        path = next(_paths(cfg, found[1]), found[1])
        known = _known_keys(_last(error, 'obj_cls'))
        return (
            f'The config has a key too many, {path}'
            f'{did_you_mean(found[1], known)} ({said})'
        )
    if MISSING_KEY.search(said):
        return f'The config lacks a key: {said}'
    return None


def _paths(
    content: Any, key: str, value: Any = None, path: str = ''
) -> Iterator[str]:
    """The places of a key, of any value or of one."""
    pairs: Any = ()
    if isinstance(content, Mapping):
        pairs = content.items()
    elif isinstance(content, (list, tuple)):
        pairs = enumerate(content)
    for name, inside in pairs:
        place = f'{path}.{name}' if path else str(name)
        if name == key and value in (None, inside):
            yield place
        yield from _paths(inside, key, value, place)


def _last(error: BaseException, name: str) -> Any:
    """What the innermost function with a variable of a name had in it."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    for frame in reversed(frames):
        # mmengine's builder is the only one to ask.
        if frame.f_code.co_name == 'build_from_cfg' and (
            name in frame.f_locals
        ):
            return frame.f_locals[name]
    return None


def _known_types(registry: Any) -> dict[str, str]:
    """The names of all parts, and how a config has to write them."""
    own, root = {}, registry
    while registry is not None:
        own.update({name: name for name in registry.module_dict})
        root, registry = registry, registry.parent
    others = {
        name: f'{scope}.{name}'
        for scope, child in (root.children if root else {}).items()
        for name in child.module_dict
    }
    return {**others, **own}


def _known_keys(part: Any) -> list[str]:
    """What the constructors of a class and of its bases take."""
    classes = inspect.getmro(part) if isinstance(part, type) else ()
    return [
        name
        for owner in classes
        if '__init__' in vars(owner) and owner is not object
        for name in inspect.signature(vars(owner)['__init__']).parameters
        if name not in ('self', 'args', 'kwargs')
    ]
