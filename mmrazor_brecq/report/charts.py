"""Charts as paths of SVG, drawn by the page's own colors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Optional

#: Integers of a grid up to which each is drawn as a line.
MOST_LINES = 32


class Histogram(NamedTuple):
    """A histogram on its grid, in a box of 320 x 80.

    Attributes:
        bars (str): Path of the bars; heights are logarithmic.
        grid (str): Path of a line for each integer, '' if there are many.
        left (float): Where the grid's range begins.
        width (float): Width of the range.
    """

    bars: str
    grid: str
    left: float
    width: float


def histogram(found: Mapping[str, Any]) -> Histogram:
    """Draw a histogram, and the grid over it.

    Args:
        found (dict): ``low``, ``high``, ``counts``, ``from`` and ``to``, as
            of :func:`layer_details`.
    """
    counts = found['counts']
    start, stop = found['from'] - 0.5, found['to'] + 0.5
    first, last = min(start, found['low']), max(stop, found['high'])
    unit = 320 / (last - first)
    top = math.log1p(max(counts, default=0)) or 1.0
    size = (found['high'] - found['low']) / max(1, len(counts))
    bars = []
    for i, count in enumerate(counts):
        if count:
            x = (found['low'] + i * size - first) * unit
            height = 78 * math.log1p(count) / top
            wide = max(size * unit, 1.0)
            bars.append(f'M{x:.4g} 80v-{height:.3g}h{wide:.3g}v{height:.3g}z')
    levels = range(found['from'], found['to'] + 1)
    lines = levels if len(levels) <= MOST_LINES else ()
    return Histogram(
        ''.join(bars),
        ''.join(f'M{(i - first) * unit:.4g} 0V80' for i in lines),
        round((start - first) * unit, 1),
        round((stop - start) * unit, 1),
    )


def curve(points: Sequence[Sequence[float]]) -> str:
    """Draw a loss curve in a box of 120 x 30, '' for fewer than two points.

    Args:
        points (list): Pairs of iteration and loss.
    """
    finite = [(x, y) for x, y in points if math.isfinite(y)]
    if len(finite) < 2:
        return ''
    (first, last), top = (
        (finite[0][0], finite[-1][0]),
        max(y for _, y in finite),
    )
    right, high = max(1, last - first), top if top > 0 else 1.0
    return 'M' + 'L'.join(
        f'{120 * (x - first) / right:.3g} {29 - 28 * max(0, y) / high:.3g}'
        for x, y in finite
    )


def steps(values: Sequence[Optional[int]], top: int = 9) -> str:
    """Draw bits over layers, 8 wide each and 10 high a bit.

    Args:
        values (list): The bits, None for float, which leaves a gap.
        top (int): Bits at the upper edge.
    """
    return ''.join(
        f'M{8 * i} {10 * (top - bits)}h8'
        for i, bits in enumerate(values)
        if bits is not None
    )
