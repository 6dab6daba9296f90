"""Explain errors of constructors as mistakes in a config."""

from __future__ import annotations

import inspect
import os
import re
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Optional

from mmengine.config import Config
from mmengine.registry import Registry

from ..config.load import find_key
from ..validation import did_you_mean
from .data_mistakes import reading_data

UNKNOWN_KEY = re.compile(r"unexpected keyword argument '(\w+)'")
MISSING_KEY = re.compile(r'missing \d+ required')
UNKNOWN_TYPE = re.compile(r'(\S+) is not in the \S+ registry')


@contextmanager
def construction(cfg: Config) -> Iterator[None]:
    """Return a context in which mistakes in a config name the key.

    These are unknown types, unknown or missing keys, missing files, and data
    sets that cannot be read. Any other error is raised unchanged.

    Args:
        cfg (Config): The config from which objects are built.

    Raises:
        FileNotFoundError: If a file is missing, with the key that names it.
        ValueError: If a type or a key is unknown, or a key is missing, with
            the key from the outermost one down.
    """
    try:
        with reading_data(cfg):
            yield
    except FileNotFoundError as error:
        path = error.filename
        key = find_key(cfg, path) if isinstance(path, str) else None
        if key is None:
            raise
        raise FileNotFoundError(
            f'{error.strerror}: {path!r} (in {os.getcwd()}), which {key} '
            'asks for: put it there, or correct the path in the config'
        ) from error
    except (TypeError, KeyError) as error:
        message = _explain(cfg.to_dict(), error)
        if message is None:
            raise
        raise ValueError(message) from error


def _explain(cfg: Mapping[str, Any], error: Exception) -> Optional[str]:
    """Return the mistake in the config, None if the error is another one."""
    text = str(error.args[0]) if error.args else ''
    if found := UNKNOWN_TYPE.search(text):
        name = found[1].strip('\'"')
        path = next(_paths(cfg, 'type', name), 'type')
        types = _known_types(_local_of_builder(error, 'registry'))
        return f'{path}={name!r} is not registered{did_you_mean(name, types)}'
    if found := UNKNOWN_KEY.search(text):
        path = next(_paths(cfg, found[1]), found[1])
        known = _known_keys(_local_of_builder(error, 'obj_cls'))
        return (
            f'The config has an unknown key, {path}'
            f'{did_you_mean(found[1], known)} ({text})'
        )
    if MISSING_KEY.search(text):
        return f'The config lacks a key: {text}'
    return None


def _paths(
    content: object, key: str, value: object = None, path: str = ''
) -> Iterator[str]:
    """Yield the paths of all keys of a name, with a value if it is given."""
    pairs: Iterable[tuple[object, object]] = ()
    if isinstance(content, Mapping):
        pairs = content.items()
    elif isinstance(content, (list, tuple)):
        pairs = enumerate(content)
    for name, item in pairs:
        inner = f'{path}.{name}' if path else str(name)
        if name == key and value in (None, item):
            yield inner
        yield from _paths(item, key, value, inner)


def _local_of_builder(error: BaseException, name: str) -> Any:
    """Return a local variable of the builder that raised an error, if any."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    for frame in reversed(frames):
        # mmengine's message lacks the registry and the class.
        if frame.f_code.co_name == 'build_from_cfg' and (
            name in frame.f_locals
        ):
            return frame.f_locals[name]
    return None


def _known_types(registry: Optional[Registry]) -> dict[str, str]:
    """Return how a config writes each registered name."""
    bare, root = {}, registry
    while registry is not None:
        bare.update({name: name for name in registry.module_dict})
        root, registry = registry, registry.parent
    others = {
        name: f'{scope}.{name}'
        for scope, child in (root.children if root else {}).items()
        for name in child.module_dict
    }
    return {**others, **bare}


def _known_keys(part: object) -> list[str]:
    """Return the arguments of a class and of its base classes."""
    classes = inspect.getmro(part) if isinstance(part, type) else ()
    return [
        name
        for owner in classes
        if '__init__' in vars(owner) and owner is not object
        for name in inspect.signature(vars(owner)['__init__']).parameters
        if name not in ('self', 'args', 'kwargs')
    ]
