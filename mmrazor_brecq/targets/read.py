"""Find targets by name, or read them from a user's YAML file."""

from __future__ import annotations

import os.path as osp
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Union

from mmengine.registry import Registry

from ..config.safe import PLAIN, check_file, read_json, read_yaml
from ..registry import SCOPE
from ..validation import Config, KeyPath, did_you_mean
from .description import Description

#: Targets that are registered as classes; files need no entry.
TARGETS = Registry('target', scope=SCOPE, locations=['mmrazor_brecq.export'])

FOLDER = Path(__file__).resolve().parent


def known_targets() -> list[str]:
    """Return the names of all targets, those of this package's files too."""
    files = (file.stem for file in FOLDER.glob('*.yaml'))
    return sorted({*files, *TARGETS.module_dict})


def find_target(
    name: str, key: str = '--target'
) -> Union[str, Mapping[str, Any]]:
    """Return a name of a target as it is, and the content of a file.

    A config that has the content needs the file no more.

    Args:
        name (str): A known name, or the path of a YAML or JSON file.
        key (str): How the user gave it, for messages.

    Raises:
        FileNotFoundError: If it is the path of no file.
        ValueError: If no target has this name, or the file describes none.
    """
    known = known_targets()
    if name in known:
        return name
    if osp.splitext(name)[1] in PLAIN or osp.sep in name:
        if not osp.exists(name):
            raise FileNotFoundError(
                f'{key} {name!r}: no such file, expected a YAML file, or one '
                f'of {", ".join(known)}'
            )
        return read_file(name)
    raise ValueError(
        f'{key} {name!r} is unknown, expected one of {", ".join(known)}, or '
        f'a YAML file{did_you_mean(name, known)}'
    )


def read_file(path: str) -> dict[str, Any]:
    """Read and check the description of a target.

    Nothing that the file holds is run.

    Args:
        path (str): A YAML or JSON file.

    Returns:
        dict: Fields of :class:`Description`.

    Raises:
        ValueError: If it is no such file, or a key or a value is wrong.
    """
    if osp.splitext(path)[1] not in PLAIN:
        raise ValueError(
            f'{path!r} has another ending than {", ".join(PLAIN)}, expected '
            'a YAML file that describes a target'
        )
    check_file(path)
    with open(path, encoding='utf-8', errors='replace') as file:
        text = file.read()
    read = read_json if path.endswith('.json') else read_yaml
    try:
        content = read(text)
        if not isinstance(content, dict):
            raise ValueError('it has no keys with values')
        content.setdefault('name', osp.splitext(osp.basename(path))[0])
        Config(Description).validate(content, KeyPath())
        Description(**content)
    except ValueError as error:
        raise ValueError(f'{path!r} describes no target: {error}') from error
    return content


@dataclass(frozen=True, eq=False)
class _Described(Config):
    """Mark of an argument that takes a target, its name, file or fields."""

    def expected(self) -> str:
        return (
            'a string: the path of a YAML file, or one of '
            f'{", ".join(known_targets())}'
        )

    def is_meant(self, value: object) -> bool:
        return isinstance(value, (str, Mapping, Description))

    def validate(self, value: Any, key_path: KeyPath) -> Any:
        """Validate a target; it becomes a :class:`Description`."""
        if isinstance(value, (str, Path)):
            path = key_path.path
            key = '--target (`target`)' if path in ('', 'target') else path
            value = find_target(str(value), key)
        if isinstance(value, str):
            if value in TARGETS.module_dict:
                return TARGETS.module_dict[value]()
            return Description(**read_file(str(FOLDER / f'{value}.yaml')))
        if isinstance(value, Description):
            return value
        super().validate(value, key_path)
        return Description(**value)


#: Type of an argument that takes a target: its name, the path of its file,
#: its fields, or itself.
TargetConfig = Annotated[Any, _Described(Description)]
