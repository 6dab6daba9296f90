"""Read YAML and JSON configs as plain values, within limits.

mmengine's own YAML loader runs functions that tags such as
``!!python/object/apply`` name, and expands aliases without a limit.
"""

from __future__ import annotations

import json
import os
import os.path as osp
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Optional, TextIO

import yaml
from mmengine.fileio.handlers import JsonHandler, YamlHandler
from mmengine.fileio.handlers.registry_utils import file_handlers

#: Endings of the names of YAML and JSON configs.
PLAIN = '.yml', '.yaml', '.json'
#: Largest number of bytes of such a config.
MAX_BYTES = 2**20
#: Largest number of placeholders such as ``{{ _base_.key }}``.
MAX_PLACEHOLDERS = 100
#: Largest number of values, with all aliases expanded.
MAX_VALUES = 200_000
#: Largest number of nested levels.
MAX_LEVELS = 100

_SafeLoader: Any = getattr(yaml, 'CSafeLoader', yaml.SafeLoader)


class _Loader(_SafeLoader):
    """Loader of numbers, strings, lists, dicts, and mmengine's tuples."""

    def tuple(self, node: yaml.Node) -> tuple:
        """Return the tuple that a node describes."""
        return tuple(self.construct_sequence(node, deep=True))


_Loader.add_constructor('tag:yaml.org,2002:python/tuple', _Loader.tuple)


def read_yaml(text: str) -> object:
    """Return the values of a YAML document.

    Args:
        text (str): The document.

    Raises:
        ValueError: If it is no YAML, names a Python object, or exceeds the
            limits.
    """
    try:
        _measure(text)
        return yaml.load(text, Loader=_Loader)
    except yaml.constructor.ConstructorError as error:
        mark = error.problem_mark
        raise ValueError(
            f'line {mark.line + 1 if mark else "?"}: {error.problem}. A '
            'YAML config has only numbers, strings, lists and dicts, and '
            'nothing in it is run'
        ) from error
    except yaml.YAMLError as error:
        raise ValueError(f'no YAML: {error}'.replace('\n', ' ')) from error


def _measure(text: str) -> None:
    """Refuse a document that exceeds the limits with all aliases expanded.

    The aliases are counted, not expanded.
    """
    # Number of values below each anchor.
    anchors: dict[str, int] = {}
    # Anchor and number of values so far of each collection that is open.
    stack: list[tuple[Optional[str], int]] = [(None, 0)]
    for event in yaml.parse(text, Loader=_SafeLoader):
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
        if before + size > MAX_VALUES or len(stack) > MAX_LEVELS:
            raise ValueError(
                f'more than {MAX_VALUES:,} values with all aliases '
                f'expanded, or {MAX_LEVELS} levels of nesting'
            )


def read_json(text: str) -> object:
    """Return the values of a JSON document.

    Raises:
        ValueError: If it is no JSON, or nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError('nested too deeply') from error


class _Yaml(YamlHandler):
    def load_from_fileobj(self, file: TextIO, **kwargs: object) -> object:
        return read_yaml(file.read())


class _Json(JsonHandler):
    def load_from_fileobj(self, file: TextIO) -> object:
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
    """Refuse folders, pipes and devices: opening one may wait or act.

    Args:
        path (str): Path of something that exists.
        expected (str): What it should be, in words.

    Raises:
        ValueError: If it is no regular file.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError(f'{path!r} is no regular file, expected {expected}')


def check_file(path: str) -> None:
    """Refuse a file that is no config before mmengine opens it.

    Args:
        path (str): Path of something that exists.

    Raises:
        ValueError: If it is no regular file, or a YAML or JSON file that
            exceeds the limits or has no keys and values.
    """
    check_regular(path, 'a config')
    ending = osp.splitext(path)[1]
    if ending not in PLAIN:
        return
    size = osp.getsize(path)
    if size > MAX_BYTES:
        raise ValueError(
            f'{path!r} has {size:,} bytes, expected a config of at most '
            f'{MAX_BYTES:,}'
        )
    with open(path, encoding='utf-8', errors='replace') as file:
        text = file.read()
    # mmengine uses the text of placeholders as regular expressions.
    unsafe = re.search(r'\{\{[^{}\n]{0,999}[()*+?|\[\]\\]', text)
    if unsafe or text.count('{{') > MAX_PLACEHOLDERS:
        raise ValueError(
            f'{path!r} has placeholders ({{{{ ... }}}}) with one of '
            f'()[]*+?|\\ in them, or more than {MAX_PLACEHOLDERS}'
        )
    if '{{' in text:
        return  # It can be parsed only when they are filled in.
    try:
        values = (read_json if ending == '.json' else read_yaml)(text)
    except ValueError as error:
        raise ValueError(f'{path!r} is refused: {error}') from error
    if not isinstance(values, dict) or not all(
        isinstance(key, str) for key in values
    ):
        raise ValueError(
            f'{path!r} has no keys with values, expected a config'
        )
