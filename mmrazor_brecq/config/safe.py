"""YAML and JSON configs: read as plain values, within limits.

mmengine reads YAML with a loader that runs what tags such as
``!!python/object/apply`` name, and expands aliases without an end.
"""

from __future__ import annotations

import json
import os
import os.path as osp
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

import yaml
from mmengine.fileio.handlers import JsonHandler, YamlHandler
from mmengine.fileio.handlers.registry_utils import file_handlers

#: What the names of YAML and JSON configs end with.
PLAIN = '.yml', '.yaml', '.json'
#: Bytes of one of them, and placeholders such as ``{{ _base_.key }}`` in it.
MOST_BYTES, MOST_PLACEHOLDERS = 2**20, 100
#: Values of one when all aliases are expanded, and levels of nesting.
MOST_VALUES, MOST_LEVELS = 200_000, 100

_Safe: Any = getattr(yaml, 'CSafeLoader', yaml.SafeLoader)


class _Loader(_Safe):
    """Knows numbers, strings, lists, dicts, and mmengine's tuples."""

    def tuple(self, node: yaml.Node) -> tuple:
        return tuple(self.construct_sequence(node, deep=True))


_Loader.add_constructor('tag:yaml.org,2002:python/tuple', _Loader.tuple)


def read_yaml(text: str) -> Any:
    """Return the values of a YAML document.

    Args:
        text (str): One document.

    Raises:
        ValueError: If it is none, names an object of Python, or exceeds the
            limits.
    """
    try:
        _measure(text)
        return yaml.load(text, Loader=_Loader)
    except yaml.constructor.ConstructorError as error:
        place = error.problem_mark
        raise ValueError(
            f'line {place.line + 1 if place else "?"}: {error.problem}. A '
            'YAML config holds numbers, strings, lists and dicts alone, and '
            'nothing in it is run'
        ) from error
    except yaml.YAMLError as error:
        raise ValueError(f'no YAML: {error}'.replace('\n', ' ')) from error


def _measure(text: str) -> None:
    """Refuse a document whose expanded aliases exceed the limits."""
    anchors: dict[str, int] = {}
    stack: list[tuple[Any, int]] = [(None, 0)]
    for event in yaml.parse(text, Loader=_Safe):
        anchor = getattr(event, 'anchor', None)
        if isinstance(event, yaml.CollectionStartEvent):
            stack.append((anchor, 1))
            continue
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, size = stack.pop()
        elif isinstance(event, yaml.ScalarEvent):
            size = 1 + len(event.value) // 64
        elif isinstance(event, yaml.AliasEvent):
            if anchor not in anchors:
                raise ValueError(
                    f'the alias *{anchor} refers to itself or to nothing'
                )
            size = anchors[anchor]
        else:
            continue
        if anchor is not None and not isinstance(event, yaml.AliasEvent):
            anchors[anchor] = size
        parent, before = stack.pop()
        stack.append((parent, before + size))
        if before + size > MOST_VALUES or len(stack) > MOST_LEVELS:
            raise ValueError(
                f'more than {MOST_VALUES:,} values with all aliases '
                f'expanded, or {MOST_LEVELS} levels of nesting'
            )


def read_json(text: str) -> Any:
    """Return the values of a JSON document.

    Raises:
        ValueError: If it is none, or nested too deep.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError('nested too deep') from error


class _Yaml(YamlHandler):
    def load_from_fileobj(self, file: TextIO, **kwargs: Any) -> Any:
        return read_yaml(file.read())


class _Json(JsonHandler):
    def load_from_fileobj(self, file: TextIO) -> Any:
        return read_json(file.read())


@contextmanager
def plain_handlers() -> Iterator[None]:
    """Let mmengine read YAML and JSON as plain values."""
    before = dict(file_handlers)
    file_handlers.update(yaml=_Yaml(), yml=_Yaml(), json=_Json())
    try:
        yield
    finally:
        file_handlers.update(before)


def check_regular(path: str, expected: str) -> None:
    """Refuse a folder, and what would wait or act when it is opened.

    Args:
        path (str): Of something that is there.
        expected (str): What it should be.

    Raises:
        ValueError: If it is no regular file, such as a pipe or a device.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError(f'{path!r} is no regular file, expected {expected}')


def check_file(path: str) -> None:
    """Refuse what is no config before mmengine opens it.

    Args:
        path (str): Of something that is there.

    Raises:
        ValueError: If it is no regular file, or a YAML or JSON file that
            exceeds the limits or does not hold keys and values.
    """
    check_regular(path, 'a config')
    ending = osp.splitext(path)[1]
    if ending not in PLAIN:
        return
    size = osp.getsize(path)
    if size > MOST_BYTES:
        raise ValueError(
            f'{path!r} has {size:,} bytes, expected a config of '
            f'{MOST_BYTES:,} at the most'
        )
    with open(path, encoding='utf-8', errors='replace') as file:
        text = file.read()
    # mmengine makes regular expressions of what stands in placeholders.
    odd = re.search(r'\{\{[^{}\n]{0,999}[()*+?|\[\]\\]', text)
    if odd or text.count('{{') > MOST_PLACEHOLDERS:
        raise ValueError(
            f'{path!r} has placeholders ({{{{ ... }}}}) with one of '
            f'()[]*+?|\\ in them, or more than {MOST_PLACEHOLDERS}'
        )
    if '{{' in text:
        return  # It can be parsed when they are filled in.
    try:
        values = (read_json if ending == '.json' else read_yaml)(text)
    except ValueError as error:
        raise ValueError(f'{path!r} is refused: {error}') from error
    if not isinstance(values, dict) or not all(
        isinstance(key, str) for key in values
    ):
        raise ValueError(
            f'{path!r} holds no keys with values, expected a config'
        )
