"""Runners that overwrite no file, and leave none if they cannot start."""

from __future__ import annotations

import logging
import os.path as osp
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pprint import pformat
from typing import Any, ClassVar, Union

from mmengine.config import Config
from mmengine.dist import is_main_process, master_only
from mmengine.logging import MMLogger
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader, Dataset

from .._terminal import LEVEL, VERBOSE, limit
from ..checkpoint import write_kept
from ..config.recipe import NO_EVALUATION
from .folders import missing_folders, remove_empty
from .loaders import build_dataloader


class NoImages(Dataset):
    """The test images of a run that measures no accuracy: none."""

    metainfo: ClassVar[dict[str, Any]] = {}

    def __len__(self) -> int:
        return 0

    def __getitem__(self, index: int) -> Any:
        raise IndexError(index)


class RunOwner(Runner):
    """Runner that writes its config into the folder of the run.

    It writes the config when its work begins, and renames an older config
    that differs. Its data loaders name images that cannot be read. What
    mmengine logs while it is built (the environment, the config, the hooks)
    goes to the log file only. Without test images its evaluator is empty.
    """

    build_dataloader = staticmethod(build_dataloader)

    def __init__(
        self, model: Union[nn.Module, dict], work_dir: str, **kwargs: Any
    ) -> None:
        self._missing = missing_folders(work_dir)
        if all(kwargs.get(key) is None for key in NO_EVALUATION):
            # mmengine wants all that belongs to a test, or nothing of it.
            kwargs.update(test_dataloader=DataLoader(NoImages()))
            kwargs.update(test_evaluator=[])
        self._terminal: list[tuple[logging.Handler, int]] = []
        with starting(self):
            try:
                super().__init__(model, work_dir, **kwargs)
            finally:
                for handler, level in self._terminal:
                    handler.setLevel(level)
        limit(self.logger)
        self.logger.info(
            f'Environment and config are logged in {self.log_dir}'
        )

    def build_logger(self, *args: Any, **kwargs: Any) -> MMLogger:
        """Build a logger whose terminal shows warnings only, for now."""
        logger = super().build_logger(*args, **kwargs)
        if LEVEL.get() <= VERBOSE:
            return logger
        for handler in logger.handlers:
            if not isinstance(handler, logging.FileHandler):
                self._terminal.append((handler, handler.level))
                handler.setLevel(max(handler.level, logging.WARNING))
        return logger

    def dump_config(self) -> None:
        """Write nothing, since mmengine calls this before any check."""

    def leave_nothing(self) -> None:
        """Remove the log, and the folders that were created for it."""
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
        """File name of the config."""
        return osp.basename(self.cfg.filename or f'{self.timestamp}.py')


@contextmanager
def starting(runner: Runner) -> Iterator[None]:
    """Return a context that removes a runner's files if it fails."""
    try:
        yield
    except BaseException:
        if isinstance(runner, RunOwner):
            runner.leave_nothing()
        raise


def begin(runner: Runner) -> None:
    """Begin the work of a runner, which writes its config if it has one."""
    if isinstance(runner, RunOwner):
        runner.begin()


def config_text(cfg: Config) -> str:
    """Return the text of a config's file, with the keys in their order.

    mmengine sorts the keys, but the order of ``bit_overrides`` matters: later
    entries override earlier ones.

    Args:
        cfg (Config): A config of plain values.
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
    """Runner of an evaluation or a search in the folder of a run.

    It writes its config beside its own log, and keeps that of the run.
    """

    @master_only
    def begin(self) -> None:
        """Write the config beside the log."""
        path = osp.join(self.log_dir, self.config_name)
        with open(path, 'w') as file:
            file.write(config_text(self.cfg))
