"""Show progress on the terminal: a bar over units and a line for each.

The bar moves within a unit, too, while it learns.
"""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from types import TracebackType
from typing import Any, Optional

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from .._terminal import LEVEL, NORMAL
from ..reconstruction import Descent, UnitReport


class UnitProgress:
    """A progress bar over the units of a network.

    A context manager: the bar is shown within it.

    Args:
        total (int): Number of units.
        logger (logging.Logger): Gets a line for each unit.
        action (str): Verb for what is done to the units.
    """

    def __init__(
        self, total: int, logger: logging.Logger, action: str = 'reconstruct'
    ) -> None:
        self.logger = logger
        self.bar = Progress(
            TextColumn(action),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn('left'),
            TimeRemainingColumn(),
            speed_estimate_period=3600,
            disable=LEVEL.get() > NORMAL,
        )
        self.task = self.bar.add_task('units', total=total)
        self.done = 0
        self._streams: list[tuple[logging.StreamHandler, Any]] = []

    def __enter__(self) -> UnitProgress:
        self.bar.start()
        Descent.watcher = self._within
        # The bar has replaced stderr, so that lines appear above it.
        for handler in self.logger.handlers:
            if type(handler) is logging.StreamHandler:
                self._streams.append((handler, handler.stream))
                _send_to(handler, sys.stderr)
        return self

    def __exit__(
        self,
        error_type: Optional[type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        Descent.watcher = None
        for handler, stream in self._streams:
            _send_to(handler, stream)
        self.bar.stop()

    def __call__(self, report: UnitReport) -> None:
        """Show that a unit is finished.

        Args:
            report (UnitReport): Of the unit.
        """
        line = (
            f'{report.name or "network"}: error {report.before:.3g} -> '
            f'{report.after:.3g}, {report.seconds:.1f} s'
        )
        if report.note:
            line += f' ({report.note})'
        self.advance(line)

    def advance(self, line: str = '') -> None:
        """Advance the bar by one unit.

        Args:
            line (str): Text about the unit, for the logger, if there is any.
        """
        if line:
            self.logger.info(line)
        self.done += 1
        self.bar.update(self.task, completed=self.done)

    def _within(self, fraction: float) -> None:
        """Show how far the present unit is, from 0 to 1."""
        self.bar.update(self.task, completed=self.done + fraction)


def _send_to(handler: logging.StreamHandler, stream: Any) -> None:
    """Let a handler write to another stream.

    The present one may be closed, as those of notebooks and tests are.
    """
    with suppress(ValueError):
        handler.flush()
    handler.stream = stream
