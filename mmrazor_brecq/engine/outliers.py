"""Find calibration images whose values are far larger than all others.

A single image that was not normalized widens the range of every quantizer,
and its error outweighs the error of all other images.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Sequence
from typing import NamedTuple, Optional

import torch
from mmengine.dist import all_gather_object
from mmengine.logging import print_log
from torch import Tensor

from ..activations import CachedBatches
from ..activations.cached_tensor import CachedTensor
from ..functional import tensors
from ..graph import LARGEST

#: The largest value of an outlier is at least so many times that of all other
#: images. One that is three times as large costs a point at W4A4.
MIN_RATIO = 2.0
#: Its logarithm is at least so many robust standard deviations above the
#: median, for images that naturally vary widely.
MIN_DEVIATIONS = 6.0
#: If a larger fraction of the images is as large, it belongs to the data.
MAX_FRACTION = 0.1
#: With fewer images there are no outliers.
MIN_IMAGES = 4


class Outlier(NamedTuple):
    """Image whose values are far larger than those of all others.

    Attributes:
        image (int): Its index among the images of this process, from 0.
        largest (float): Its largest absolute value.
        times (float): Ratio of that to the largest value of all images that
            are no outliers.
    """

    image: int
    largest: float
    times: float


def leave_out(
    images: CachedBatches, names: Sequence[Optional[str]] = ()
) -> list[dict[str, object]]:
    """Replace outliers by other images, and warn of each.

    Nothing is changed if there are no outliers.

    Args:
        images (CachedBatches): Calibration images, N x C x H x W, finite.
            They are changed in place.
        names (list, optional): The file of each image, if known.

    Returns:
        list[dict]: Of each outlier its index ``image``, its ``name`` if
        known, its ``largest`` absolute value, and how many ``times`` the
        largest value of all others that is.

    Raises:
        ValueError: If the values of an image that is no outlier are too
            large to compute with.
    """
    found: list[Outlier] = []
    bad: set[int] = set()
    # A network may take several inputs, and integers, which have no range.
    for k, example in enumerate(tensors(images.batch(0))):
        if not example.is_floating_point():
            continue
        parts = (_extent(tensors(batch)[k]) for batch in images.split())
        largest, flat = map(torch.cat, zip(*parts))
        outliers = find_outliers(largest, flat)
        found += [x for x in outliers if x.image not in bad]
        bad |= {x.image for x in outliers}
        _check_size(largest, bad)
    good = [i for i in range(len(images)) if i not in bad]
    report = []
    for outlier in found:
        # The next good image is used twice, so that batches keep their sizes.
        other = next((i for i in good if i > outlier.image), good[0])
        for leaf in images.leaves:
            if isinstance(leaf, CachedTensor):
                leaf.write(outlier.image, leaf.take(torch.tensor([other])))
        name = names[outlier.image] if outlier.image < len(names) else None
        entry: dict[str, object] = outlier._asdict()
        if name is not None:
            entry['name'] = str(name)
        report.append(entry)
        _warn(outlier, name, other)
    return report


def _check_size(largest: Tensor, bad: Collection[int]) -> None:
    """Refuse images, but for the bad ones, that are too large to square."""
    for i, value in enumerate(largest.tolist()):
        if value > LARGEST and i not in bad:
            raise ValueError(
                f'Calibration image {i} contains {value:.3g}, '
                f'expected at most {LARGEST:g}, whose square is still '
                'finite: repair it, or leave it out'
            )


def _warn(outlier: Outlier, name: Optional[str], other: int) -> None:
    """Warn of an outlier that another image replaces."""
    named = '' if name is None else f' ({name})'
    print_log(
        f'Calibration image {outlier.image}{named} is an outlier: its largest '
        f'value is {outlier.largest:.4g}, {outlier.times:.3g} times that of '
        f'all others. It is left out, and image {other} is used twice: check '
        'whether it was normalized like the others',
        'current',
        logging.WARNING,
    )


def find_outliers(largest: Tensor, flat: Tensor) -> list[Outlier]:
    """Return the images whose values are far larger than all others.

    Outliers are at most a tenth of the images. The largest value of each is
    far above those of all other images, with none in between, also in
    relation to how these vary. Images of one color do not count as other
    images, and dark images are never outliers.

    Args:
        largest (Tensor): The largest absolute value of each image of this
            process, of shape N. The images of all processes are compared.
        flat (Tensor): Whether each image is of one color, of shape N.
    """
    bright = largest > 0
    gathered = all_gather_object((largest[bright].double(), flat[bright]))
    all_largest, all_flat = map(torch.cat, zip(*gathered))
    logs, order = all_largest.log().sort()
    count, varied = len(logs), ~all_flat[order]
    enough = int(varied.sum()) >= MIN_IMAGES
    most = math.ceil(MAX_FRACTION * int(varied.sum())) if enough else 0
    for first in range(count - most, count):
        others = logs[:first][varied[:first]]
        if not len(others):
            continue
        median = others.median()
        # The factor makes it the standard deviation of normal values.
        deviation = 1.4826 * (others - median).abs().median()
        limit = max(
            others[-1] + math.log(MIN_RATIO),
            median + MIN_DEVIATIONS * deviation,
        )
        if logs[first] >= limit:
            times = largest.double() / others[-1].exp()
            return [
                Outlier(int(i), float(largest[i]), float(times[i]))
                for i in (times.log() + others[-1] >= limit).nonzero()[:, 0]
            ]
    return []


def _extent(batch: Tensor) -> tuple[Tensor, Tensor]:
    """Return of each image the largest absolute value, and if it is flat."""
    channels = batch.shape[1] if batch.dim() > 2 else 1
    low, high = batch.reshape(len(batch), channels, -1).aminmax(dim=2)
    largest = torch.maximum(high, -low).amax(1)
    return largest.cpu(), (low == high).all(1).cpu()
