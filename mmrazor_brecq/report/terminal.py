"""Progress on the terminal: a bar over units and a line for each."""

from __future__ import annotations

import logging
import sys
from types import TracebackType
from typing import Optional

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from ..reconstruction import UnitReport


class UnitProgress:
    """A bar that moves on with every report.

    Args:
        total (int): Number of units.
        logger (logging.Logger): Takes the lines.
        what (str): What is done to them.
    """

    def __init__(
        self, total: int, logger: logging.Logger, what: str = 'reconstruct'
    ) -> None:
        self.logger = logger
        self.bar = Progress(
            TextColumn(what),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn('left'),
            TimeRemainingColumn(),
            speed_estimate_period=3600,
        )
        self.task = self.bar.add_task('units', total=total)
        self._streams: list[tuple[logging.StreamHandler, object]] = []

    def __enter__(self) -> UnitProgress:
        self.bar.start()
        # The bar has taken the place of stderr, so that lines go above it.
        for handler in self.logger.handlers:
            if type(handler) is logging.StreamHandler:
                self._streams.append((handler, handler.stream))
                handler.setStream(sys.stderr)
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        for handler, stream in self._streams:
            handler.setStream(stream)
        self.bar.stop()

    def __call__(self, report: UnitReport) -> None:
        """Show a finished unit."""
        line = (
            f'{report.name or "network"}: error {report.before:.3g} -> '
            f'{report.after:.3g}, {report.seconds:.1f} s'
        )
        if report.note:
            line += f' ({report.note})'
        self.advance(line)

    def advance(self, line: str) -> None:
        """Move on, with a line about it."""
        self.logger.info(line)
        self.bar.advance(self.task)
