"""Runners that overwrite nothing, and leave nothing if they cannot start."""

from __future__ import annotations

import os
import os.path as osp
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pprint import pformat
from typing import Any

from mmengine.config import Config
from mmengine.dist import is_main_process, master_only
from mmengine.runner import Runner

from ..checkpoint import write_kept
from .loaders import build_dataloader


class RunOwner(Runner):
    """Makes a folder its own: its config lies there once work begins.

    One that is there and says something else is moved aside. Images that
    cannot be read are named.
    """

    build_dataloader = staticmethod(build_dataloader)

    def __init__(self, model: Any, work_dir: str, **kwargs: Any) -> None:
        self._missing = missing_folders(work_dir)
        with starting(self):
            super().__init__(model, work_dir, **kwargs)

    def dump_config(self) -> None:
        """Write nothing yet: mmengine calls it before anything is checked."""

    def leave_nothing(self) -> None:
        """Remove the log, and the folders that were made for it."""
        if not is_main_process():
            return
        if hasattr(self, '_log_dir'):
            shutil.rmtree(self._log_dir, ignore_errors=True)
        remove_empty(self._missing)

    @master_only
    def begin(self) -> None:
        """Write the config into the folder of the run."""
        write_kept(
            osp.join(self.work_dir, self.config_name), config_text(self.cfg)
        )

    @property
    def config_name(self) -> str:
        """Name of the config's file."""
        return osp.basename(self.cfg.filename or f'{self.timestamp}.py')


@contextmanager
def starting(runner: Runner) -> Iterator[None]:
    """Leave no trace of a runner if what happens before its work fails."""
    try:
        yield
    except BaseException:
        if isinstance(runner, RunOwner):
            runner.leave_nothing()
        raise


def begin(runner: Runner) -> None:
    """Write the config, where the runner has one to write: work begins."""
    if isinstance(runner, RunOwner):
        runner.begin()


def missing_folders(folder: str) -> list[str]:
    """Return the folders that have to be made, the innermost first."""
    folder, missing = osp.abspath(folder), []
    while not osp.lexists(folder):
        missing.append(folder)
        folder = osp.dirname(folder)
    return missing


def remove_empty(folders: list[str]) -> None:
    """Remove folders, the innermost first, but those that hold something."""
    for folder in folders:
        with suppress(OSError):
            os.rmdir(folder)


def config_text(cfg: Config) -> str:
    """What a config's file has to say, its keys in their order.

    mmengine sorts them, and later entries of ``bit_overrides`` win.

    Args:
        cfg (Config): Of plain values.
    """
    if not (cfg.filename or '.py').endswith('.py'):
        return cfg.dump()
    return (
        '\n'.join(
            f'{key} = {pformat(value, width=79, sort_dicts=False)}'
            for key, value in cfg.to_dict().items()
        )
        + '\n'
    )


class RunVisitor(RunOwner):
    """Looks at a run, as evaluation and searches do.

    What it changed of the config goes beside its own log.
    """

    @master_only
    def begin(self) -> None:
        """Write the config beside the log."""
        path = osp.join(self.log_dir, self.config_name)
        with open(path, 'w') as file:
            file.write(config_text(self.cfg))
