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
from mmengine.registry import (
    DATASETS,
    FUNCTIONS,
    METRICS,
    MODELS,
    TRANSFORMS,
    Registry,
)

from ..config.load import find_key
from ..validation import did_you_mean
from .data_mistakes import reading_data
from .settings import check_settings

UNKNOWN_KEY = re.compile(r"unexpected keyword argument '(\w+)'")
MISSING_KEY = re.compile(r'missing \d+ required')
UNKNOWN_TYPE = re.compile(r'(\S+) is not in the .+ registry')
#: What mmcv says of the type of a norm or a convolution.
NO_BRICK = 'Cannot find None in registry'
#: What mmengine makes of a `collate_fn` that is not registered.
NO_FUNCTION = 'the first argument must be callable'
#: Registries of parts that are not ours, by the key below which they are.
REGISTRIES = dict(
    dataset=DATASETS,
    pipeline=TRANSFORMS,
    test_evaluator=METRICS,
    architecture=MODELS,
)


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


def check_options(cfg: Config, options: Iterable[str]) -> None:
    """Refuse options of the command line that no part of a config takes.

    Args:
        cfg (Config): The config with the options.
        options (list[str]): Their dotted keys.

    Raises:
        ValueError: If a key is unknown. Those of data sets, transforms,
            metrics and architectures are refused if a similar one is known.
    """
    check_settings(cfg)
    scope = cfg.get('default_scope') or 'mmengine'
    for option in options:
        found = _owner(cfg.to_dict(), option)
        if found is None:
            continue
        registry, kind, name = found
        with registry.switch_scope_and_registry(scope) as scoped:
            part = scoped.get(kind) if isinstance(kind, str) else kind
        known = _known_keys(part)
        hint = did_you_mean(name, known)
        if known and hint and name not in known:
            raise ValueError(f'--cfg-options {option} is an unknown key{hint}')


def _owner(
    cfg: Mapping[str, Any], option: str
) -> Optional[tuple[Registry, Any, str]]:
    """Return registry and type of the part that takes an option, and its key.

    None if it is for no part, or for one that :func:`check_settings` checks.
    """
    value: Any = cfg
    registry, found = None, None
    for name in option.split('.'):
        typed = isinstance(value, Mapping) and 'type' in value
        if typed and registry is not None:  # An empty one is false.
            found = registry, value['type'], name
        registry = REGISTRIES.get(name, registry)
        try:
            value = value[int(name) if isinstance(value, list) else name]
        except (KeyError, IndexError, TypeError, ValueError):
            break
    return found


def _explain(cfg: Mapping[str, Any], error: Exception) -> Optional[str]:
    """Return the mistake in the config, None if the error is another one."""
    text = str(error.args[0]) if error.args else ''
    if text.startswith(NO_BRICK):
        # mmcv's message has the scope alone.
        name = _local_of(error, 'layer_type')
        path = next(_paths(cfg, 'type', name), 'type')
        hint = did_you_mean(name, _known_types(MODELS))
        return f'{path}={name!r} is not registered{hint}'
    if found := UNKNOWN_TYPE.search(text):
        name = found[1].strip('\'"')
        path = next(_paths(cfg, 'type', name), 'type')
        types = _known_types(_local_of_builder(error, 'registry'))
        hint = did_you_mean(name.split('.')[-1], types)
        return f'{path}={name!r} is not registered{hint}'
    if text == NO_FUNCTION:
        for path, kind in _collate_functions(cfg):
            if isinstance(kind, str) and FUNCTIONS.get(kind) is None:
                hint = did_you_mean(kind, _known_types(FUNCTIONS))
                return f'{path}={kind!r} is not registered{hint}'
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


def _collate_functions(cfg: object) -> Iterator[tuple[str, object]]:
    """Yield the types of all functions that collate, with their paths."""
    for path in _paths(cfg, 'collate_fn'):
        found: Any = cfg
        for name in path.split('.'):
            found = found[int(name) if isinstance(found, list) else name]
        kind = found.get('type') if isinstance(found, Mapping) else None
        yield f'{path}.type', kind


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
    # mmengine's message lacks the registry and the class.
    return _local_of(error, name, 'build_from_cfg')


def _local_of(error: BaseException, name: str, function: str = '') -> Any:
    """Return a local variable of a function that an error passed, if any.

    Args:
        error (Exception): The error.
        name (str): Name of the variable.
        function (str): Name of the function; by default any.
    """
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    for frame in reversed(frames):
        if function in ('', frame.f_code.co_name) and name in frame.f_locals:
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
