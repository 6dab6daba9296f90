"""Folders that a run creates, and removes again if they stay empty."""

from __future__ import annotations

import os
import os.path as osp
from contextlib import suppress


def missing_folders(folder: str) -> list[str]:
    """Return the folders that do not exist yet, the innermost first."""
    folder, missing = osp.abspath(folder), []
    while not osp.lexists(folder):
        missing.append(folder)
        folder = osp.dirname(folder)
    return missing


def remove_empty(folders: list[str]) -> None:
    """Remove the folders that are empty, in the given order."""
    for folder in folders:
        with suppress(OSError):
            os.rmdir(folder)
