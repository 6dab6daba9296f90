from __future__ import annotations

import io
import logging

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
