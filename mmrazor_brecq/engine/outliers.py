"""Calibration images that are far out of line with all the others.

A single image that nobody normalized stretches every range, and the error of
all others no longer counts beside its own.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from mmengine.dist import all_gather_object
from mmengine.logging import print_log
from torch import Tensor

from ..activations import CachedBatches
from ..graph import LARGEST

#: How many times the largest value of all others that of an image is at the
#: least: photographs are within a factor of 2 or 3 of each other.
TIMES = 5.0
#: How many spreads (a robust standard deviation) its logarithm has to be
#: above the median, where images vary widely by nature.
SPREADS = 6.0
#: What is more frequent belongs to the data.
MOST = 0.1
#: Of fewer images nobody can tell which are in line.
FEWEST = 4


class Outlier(NamedTuple):
    """An image that is out of line.

    Attributes:
        image (int): Its place among the images of this process, from 0.
        largest (float): Its largest absolute value.
        times (float): How many times that of all images in line.
    """

    image: int
    largest: float
    times: float


def leave_out(
    images: CachedBatches, names: Sequence[Any] = ()
) -> list[dict[str, Any]]:
    """Put images in line in the place of those that are not, and say so.

    Nothing is changed where all are in line.

    Args:
        images (CachedBatches): Calibration images, N x C x H x W, finite.
        names (list, optional): Where each image comes from, if known.

    Returns:
        list[dict]: Of each that was left out its number ``image``, its
        ``name`` if known, its ``largest`` absolute value, and how many
        ``times`` the largest of all others that is.

    Raises:
        ValueError: If one is too large to compute with, and so few or so many
            are that none of them is out of line.
    """
    if not images.batch(0).is_floating_point():
        return []
    largest, flat = map(torch.cat, zip(*map(_extent, images.split())))
    found = find_outliers(largest, flat)
    bad = {outlier.image for outlier in found}
    good = [i for i in range(len(images)) if i not in bad]
    for i in good:
        if largest[i] > LARGEST:
            raise ValueError(
                f'Calibration image {i} holds {float(largest[i]):.3g}, '
                f'expected {LARGEST:g} at the most, the square of which is '
                'still a number: mend it, or leave it out'
            )
    (column,) = images.leaves
    report = []
    for outlier in found:
        # The next one in line counts twice: batches keep their sizes.
        other = next((i for i in good if i > outlier.image), good[0])
        column.write(outlier.image, column.take(torch.tensor([other])))
        name = names[outlier.image] if outlier.image < len(names) else None
        report.append(
            dict(
                outlier._asdict(),
                **({} if name is None else dict(name=str(name))),
            )
        )
        print_log(
            f'Calibration image {outlier.image}'
            + ('' if name is None else f' ({name})')
            + f' is out of line: its largest value is {outlier.largest:.4g}, '
            f'{outlier.times:.3g} times that of all others. It is left out, '
            f'and image {other} counts twice: see whether it was normalized '
            'like the others',
            'current',
            logging.WARNING,
        )
    return report


def find_outliers(largest: Tensor, flat: Tensor) -> list[Outlier]:
    """Return the images whose values are set off from those of all others.

    Few images (a tenth at the most), whose largest value is far above those
    of the rest, with nothing in between, and far out for how the rest are
    spread. Images without content say nothing of how others should be, and
    dark ones are never out of line.

    Args:
        largest (Tensor): The largest absolute value of each image of this
            process; those of all processes are compared.
        flat (Tensor): Which images are of one color.
    """
    bright = largest > 0
    gathered = all_gather_object((largest[bright].double(), flat[bright]))
    every, plain = map(torch.cat, zip(*gathered))
    known, order = every.log().sort()
    count, full = len(known), ~plain[order]
    enough = int(full.sum()) >= FEWEST
    most = math.ceil(MOST * int(full.sum())) if enough else 0
    for first in range(count - most, count):
        line = known[:first][full[:first]]
        if not len(line):
            continue
        median = line.median()
        spread = 1.4826 * (line - median).abs().median()
        far = max(line[-1] + math.log(TIMES), median + SPREADS * spread)
        if known[first] >= far:
            times = largest.double() / line[-1].exp()
            return [
                Outlier(int(i), float(largest[i]), float(times[i]))
                for i in (times.log() + line[-1] >= far).nonzero()[:, 0]
            ]
    return []


def _extent(batch: Tensor) -> tuple[Tensor, Tensor]:
    """Of each image the largest absolute value, and whether it is flat."""
    channels = batch.shape[1] if batch.dim() > 2 else 1
    low, high = batch.reshape(len(batch), channels, -1).aminmax(dim=2)
    largest = torch.maximum(high, -low).amax(1)
    return largest.cpu(), (low == high).all(1).cpu()
