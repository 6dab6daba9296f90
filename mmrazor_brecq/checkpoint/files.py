"""Files that are either whole or not there, and never lost."""

from __future__ import annotations

import json
import os
import os.path as osp
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.logging import print_log


@contextmanager
def written_whole(path: str) -> Iterator[str]:
    """Write under a temporary name, then rename.

    Args:
        path (str): Where the file shall be.

    Yields:
        str: The name to write to.
    """
    os.makedirs(osp.dirname(osp.abspath(path)), exist_ok=True)
    temporary = f'{path}.{os.getpid()}.tmp'
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        if osp.exists(temporary):
            os.remove(temporary)


def save_tensors(content: Any, path: str) -> None:
    """Save tensors and plain Python."""
    # By its name, torch would put it into the file.
    with written_whole(path) as name, open(name, 'wb') as file:
        torch.save(content, file)


def save_json(content: dict[str, Any], path: str) -> None:
    """Save plain Python as JSON."""
    with written_whole(path) as name, open(name, 'w') as file:
        json.dump(content, file, indent=2)


def keep_older(path: str) -> None:
    """Move what lies at ``path`` aside, under the next free number."""
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
