from __future__ import annotations

import io
import logging

import torch

from mmrazor_brecq import _terminal
from mmrazor_brecq.reconstruction import Descent
from mmrazor_brecq.report.terminal import UnitProgress


def test_a_stream_that_was_closed_is_no_error():
    """A notebook or a test may have replaced and closed it."""
    logger = logging.Logger('closed')
    stream = io.StringIO()
    logger.addHandler(logging.StreamHandler(stream))
    stream.close()
    with UnitProgress(1, logger):
        logger.info('within')
    assert logger.handlers[0].stream is stream


def test_the_bar_moves_while_a_unit_learns():
    """Also if learning ends early, each unit counts once."""
    weight, seen = torch.nn.Parameter(torch.ones(())), []
    with UnitProgress(2, logging.Logger('bar')) as show:
        for last in 3, 1:
            descent = Descent([([weight], 0.1)], 4, [])
            for i in descent:
                seen.append(show.bar.tasks[0].completed)
                descent.backward(weight.square())
                descent.step()
                if i == last:
                    break
            show.advance()
            seen.append(show.bar.tasks[0].completed)
    assert seen == [0, 0.25, 0.5, 0.75, 1, 1, 1.25, 2]
    assert Descent.watcher is None


def test_a_quiet_terminal_has_no_bar():
    token = _terminal.LEVEL.set(_terminal.QUIET)
    try:
        assert UnitProgress(1, logging.Logger('quiet')).bar.disable
    finally:
        _terminal.LEVEL.reset(token)
