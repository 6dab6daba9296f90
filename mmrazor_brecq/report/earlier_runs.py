"""Compare a run with earlier, shorter runs of the same network."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import NamedTuple, Optional

from .tables import Report


def outdone(report: Report, earlier: Mapping[str, Report]) -> str:
    """Return advice if a shorter run came nearer to the float network.

    Such a run has the same weights, images and bits, and its outputs diverge
    less, by at least a tenth, on the held-out calibration images.

    Args:
        report (dict): As in ``report.json``.
        earlier (dict): Reports of other runs, by name of their file.

    Returns:
        str: A sentence, or an empty string.
    """
    current = _summarize(report)
    better = {
        name: run
        for name, other in earlier.items()
        if current and (run := _summarize(other)) and run.outdoes(current)
    }
    name = min(better, key=lambda name: better[name].divergence, default=None)
    if current is None or name is None:
        return ''
    return (
        'On the calibration images held out, outputs diverge from those of '
        f'the float network by {current.divergence:.3g} nats; an earlier run '
        f'of {better[name].seconds:.0f} s in place of {current.seconds:.0f} s '
        f'came to {better[name].divergence:.3g} ({name}): the longer one is '
        'the worse one, so keep the checkpoint of the shorter'
    )


class _Run(NamedTuple):
    """Summary of a report, by which runs are compared.

    Attributes:
        identity (tuple[str]): Checksums of checkpoint and calibration
            images, and the bits of all layers.
        divergence (float): From the float network, in nats.
        seconds (float): Time that all units took.
    """

    identity: tuple[str, ...]
    divergence: float
    seconds: float

    def outdoes(self, other: _Run) -> bool:
        """Return whether it is shorter, comparable, and clearly nearer."""
        return (
            self.identity == other.identity
            and self.seconds < other.seconds
            and math.isfinite(self.divergence)
            # Written so that any run outdoes one with NaN.
            and not self.divergence >= 0.9 * other.divergence
        )


def _summarize(report: Report) -> Optional[_Run]:
    """Return the summary of a report; None for one of an earlier version."""
    try:
        identity = report['identity']
        bits: dict[str, object] = {}
        for unit in report['units']:
            bits.update(unit['bits'])
        return _Run(
            (
                identity['checkpoint'],
                identity['calibration'],
                # As text, because JSON turns tuples into lists.
                json.dumps(bits, sort_keys=True),
            ),
            float(report['divergence']['quantized']),
            sum(float(unit['seconds']) for unit in report['units']),
        )
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
