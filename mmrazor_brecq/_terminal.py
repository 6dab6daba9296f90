"""How much a tool shows on the terminal; its log file has everything."""

from __future__ import annotations

import logging
from contextvars import ContextVar

#: Levels of the terminal: warnings alone, what a run does, and all that
#: mmengine logs while it starts.
QUIET, NORMAL, VERBOSE = logging.WARNING, logging.INFO, logging.DEBUG
#: The level of this process.
LEVEL: ContextVar[int] = ContextVar('LEVEL', default=NORMAL)


def limit(logger: logging.Logger) -> None:
    """Let the terminal show no less urgent messages than ``LEVEL``.

    Args:
        logger (logging.Logger): Its handlers of files stay as they are.
    """
    for handler in logger.handlers:
        if not isinstance(handler, logging.FileHandler):
            handler.setLevel(max(handler.level, LEVEL.get()))
