"""Cache of images that come with data samples."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Optional

import torch
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from ..graph import Samples, inputs_for, most_images, sampled
from .batched import CachedBatches


class CachedSamples(CachedBatches):
    """Cache of images whose batches are :class:`Samples`.

    Args:
        images (CachedBatches): The images, whose cache is shared.
        data (list): The data sample of each image.
        max_images (int): Most images of a batch.
    """

    def __init__(
        self,
        images: CachedBatches,
        data: Sequence[BaseDataElement],
        max_images: int,
    ) -> None:
        vars(self).update(vars(images))
        self.data = [*data]
        count = len(images)
        size = min(max_images, max(images.sizes))
        # What belongs to images shows where two batches differ in size.
        first = max(1, size - 1)
        self.sizes = [min(first, count)] + [
            min(size, count - start) for start in range(first, count, size)
        ]
        self.starts = list(accumulate(self.sizes, initial=0))
        self.differing = [{} for _ in self.sizes]

    def take(self, index: Tensor) -> Any:
        """Return a copy of some images, with their data samples."""
        images = super().take(index)
        return Samples(images, [self.data[i] for i in index.tolist()])

    def first(self, count: int) -> CachedBatches:
        """Return the first images, at most ``count``, in the same store."""
        return CachedSamples(
            super().first(count), self.data[:count], max(self.sizes)
        )

    def batch(self, k: int) -> Any:
        """Return a copy of the k-th batch, with its data samples."""
        start, stop = self.starts[k : k + 2]
        return Samples(super().batch(k), self.data[start:stop])


def with_samples(
    network: nn.Module,
    images: CachedBatches,
    data: Optional[Sequence[BaseDataElement]] = None,
) -> CachedBatches:
    """Return images as a network takes them: alone, or with data samples.

    Args:
        network (nn.Module): The float network, which is in evaluation mode
            afterwards.
        images (CachedBatches): Preprocessed images, N x C x H x W.
        data (list, optional): The data sample of each image, as the data
            preprocessor gives it.

    Returns:
        CachedBatches: ``images`` themselves, or :class:`CachedSamples` that
        share their cache.
    """
    if isinstance(images, CachedSamples):
        return images
    given = [*data] if data is not None else None
    first = images.batch(0)[:1]
    if not isinstance(
        inputs_for(network, first, given and given[:1]), Samples
    ):
        return images
    found: list[BaseDataElement] = []
    for start, stop in zip(images.starts, images.starts[1:]):
        part = images.take(torch.arange(start, stop))
        found += sampled(network, part, given and given[start:stop]).data
    return CachedSamples(images, found, most_images(found))
