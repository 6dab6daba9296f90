"""Cache of nested tensors, batch by batch, that are taken image by image."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, islice
from typing import Callable, NamedTuple, Optional, Union

import torch
from torch import Tensor

from ..functional import Nested, flatten, leaves, map_tensors
from .cached_tensor import CachedTensor
from .store import Store

#: Max elements per batch for a full-network pass: forward only, and forward
#: and backward with all activations in between kept.
MAX_ELEMENTS_FORWARD, MAX_ELEMENTS_BACKWARD = 2**20, 2**19


def images_per_pass(
    elements: int, max_images: int, max_elements: int = 3 * 2**20
) -> int:
    """Return how many images run together, so that they need little memory.

    Args:
        elements (int): Elements of one image.
        max_images (int): Images at most.
        max_elements (int): Elements of all of them together at most.

    Returns:
        int: 1 to ``max_images``.
    """
    return max(1, min(max_images, max_elements // max(1, elements)))


class CachedBatches:
    """Cache of the batches of a nested structure, image by image.

    A structure is a tensor, or any nesting of tensors and other values,
    such as the arguments of a layer. A tensor belongs to the images if its
    first dimension is, in the first two batches, the same multiple of the
    batch size (a Swin block sees many windows of an image). All other
    values belong to the network, and so does a table that happens to be as
    long: each batch keeps its own, and images that are taken from several
    batches get that of the first batch.

    Example:
        >>> batches = [torch.ones(4, 3), torch.zeros(2, 3)]
        >>> images = CachedBatches(batches, sizes=[4, 2])
        >>> len(images)
        6
        >>> images.take(torch.tensor([0, 5])).sum(1)
        tensor([3., 0.])

    Args:
        batches (iterable): One structure for each batch, all of one form.
            The next batch is only asked for once all before it are cached.
        sizes (list[int]): Number of images in each batch.
        store (Store, optional): The cache of the tensors. Default: one
            without a budget.
        on_cached (callable, optional): Called when a batch is cached, with
            its index and a list of pairs: a cache, and the batch's tensor
            whose values it has.

    Raises:
        ValueError: If the images of several batches differ in size.
    """

    def __init__(
        self,
        batches: Iterable[Nested],
        sizes: Sequence[int],
        store: Optional[Store] = None,
        on_cached: Optional[
            Callable[[int, list[tuple[CachedTensor, Tensor]]], None]
        ] = None,
    ) -> None:
        self.sizes = list(sizes)
        #: Index of the first image of each batch, and the number of images.
        self.starts = list(accumulate(sizes, initial=0))
        self.store = store or Store()
        batches = iter(batches)
        first = list(islice(batches, 2))
        values, self._rebuild = flatten(first[0])
        #: For each tensor that comes again, as the same object, the index of
        #: the first time: code may look at that, as torch's attention does.
        self.again = _repeated([leaves(batch) for batch in first])
        #: What the structure holds, in order: a cache for each tensor that
        #: belongs to images, and all other values of the first batch.
        self.leaves = [
            self._cache_for(same_leaf)
            for same_leaf in zip(*map(leaves, first))
        ]
        # A value that the second batch lacks belongs to no image either.
        self.leaves += values[len(self.leaves) :]
        #: Of each batch, the values that differ from those of the first
        #: batch, by index of the leaf; or the batch, if its form differs.
        self.differing: list[Union[dict[int, Nested], _OddBatch]] = []
        del values
        for batch in _taken_out(first, batches):
            k = len(self.differing)
            pairs = self._cache(k, batch)
            if on_cached is not None:
                on_cached(k, pairs)
            # The next one is large, too.
            del batch, pairs

    def _cache(
        self, k: int, batch: Nested
    ) -> list[tuple[CachedTensor, Tensor]]:
        """Cache the k-th batch; return its tensors with their caches."""
        values = leaves(batch)
        if len(values) != len(self.leaves):
            self.differing.append(_OddBatch(batch))
            return []
        pairs = [
            (leaf, x)
            for leaf, x in zip(self.leaves, values)
            if isinstance(leaf, CachedTensor)
        ]
        for cached, x in pairs:
            cached.write(self.starts[k], x)
        self.differing.append(
            {
                i: x
                for i, (leaf, x) in enumerate(zip(self.leaves, values))
                if x is not leaf and not isinstance(leaf, CachedTensor)
            }
        )
        return pairs

    def _cache_for(self, same_leaf: Sequence[Nested]) -> Nested:
        """Return an empty cache for a leaf, or its value for all images.

        Args:
            same_leaf (sequence): The leaf's values in the first batches.
        """
        rows_per_image = _rows_per_image(same_leaf, self.sizes)
        if not rows_per_image:
            return same_leaf[0]
        return self.store.allocate(len(self), same_leaf[0], rows_per_image)

    def rebuild(self, values: list[Nested]) -> Nested:
        """Return the structure with other values."""
        for i, first in self.again.items():
            values[i] = values[first]
        return self._rebuild(values)

    def __len__(self) -> int:
        """Return the number of images."""
        return self.starts[-1]

    @property
    def elements(self) -> int:
        """Elements of one image, over all tensors."""
        return sum(
            x.elements for x in self.leaves if isinstance(x, CachedTensor)
        )

    def take(self, index: Tensor) -> Nested:
        """Return a copy of the structure of some images.

        Args:
            index (Tensor): Indices of images, below ``len(self)``.
        """
        return self.rebuild(
            [
                x.take(index) if isinstance(x, CachedTensor) else x
                for x in self.leaves
            ]
        )

    def batch(self, k: int) -> Nested:
        """Return a copy of the k-th batch, as it was given."""
        differing = self.differing[k]
        if isinstance(differing, _OddBatch):
            return map_tensors(Tensor.clone, differing.batch)
        span = self.starts[k : k + 2]
        return self.rebuild(
            [
                x.read(*span)
                if isinstance(x, CachedTensor)
                else differing.get(i, x)
                for i, x in enumerate(self.leaves)
            ]
        )

    @property
    def mixes_images(self) -> bool:
        """Return whether a real tensor differs from batch to batch, though
        its first dimension is not that of the images.
        """
        return any(
            isinstance(x, Tensor)
            and x.is_floating_point()
            and not torch.equal(x, self.leaves[i])
            for differing in self.differing
            if isinstance(differing, dict)
            for i, x in differing.items()
        )

    def first(self, count: int) -> CachedBatches:
        """Return the first images, at most ``count``, in the same store."""
        index = torch.arange(min(count, len(self)))
        parts = index.split(max(self.sizes))
        return CachedBatches(
            (CachedBatches.take(self, part) for part in parts),
            [*map(len, parts)],
            self.store,
        )

    def split(self) -> Iterator[Nested]:
        """Yield copies of all batches, as they were given."""
        return map(self.batch, range(len(self.sizes)))

    def take_mixed(
        self,
        other: CachedBatches,
        index: Tensor,
        mix: Callable[[Tensor, Tensor], Tensor],
    ) -> Nested:
        """Return the structure of some images, mixed with that of another.

        Args:
            other (CachedBatches): Of the same form.
            index (Tensor): Indices of images, below ``len(self)``.
            mix (callable): From two floating-point tensors of the images,
                this one's and the other's, to one.
        """
        if other is self:
            return self.take(index)
        values = []
        for x, y in zip(self.leaves, other.leaves):
            if isinstance(x, CachedTensor):
                x = x.take(index)
                if x.is_floating_point():
                    x = mix(x, y.take(index))
            values.append(x)
        return self.rebuild(values)


def _taken_out(
    first: list[Nested], rest: Iterator[Nested]
) -> Iterator[Nested]:
    """Yield from a list, which is empty then, and from an iterator."""
    while first:
        yield first.pop(0)
    yield from rest


def _repeated(batches: list[list[Nested]]) -> dict[int, int]:
    """Return which leaves are the same tensor as one before, in all batches.

    Args:
        batches (list[list]): The leaves of some batches.
    """
    first: dict[tuple[int, ...], int] = {}
    found = {}
    for i, same_leaf in enumerate(zip(*batches)):
        if all(isinstance(x, Tensor) for x in same_leaf):
            key = tuple(map(id, same_leaf))
            if first.setdefault(key, i) != i:
                found[i] = first[key]
    return found


class _OddBatch(NamedTuple):
    """A batch whose form differs from that of the first batch."""

    batch: Nested


def _rows_per_image(values: Sequence[Nested], sizes: Sequence[int]) -> int:
    """Return the rows of each image, or 0 if they belong to no image.

    Args:
        values (sequence): The values of one leaf in the first batches.
        sizes (list[int]): Number of images in each batch.
    """
    if not all(isinstance(x, Tensor) and x.dim() for x in values):
        return 0
    quotients = {divmod(x.shape[0], size) for x, size in zip(values, sizes)}
    rows, rest = quotients.pop()
    if quotients or rest or not rows or _is_table(values, rows):
        return 0
    return rows


def _is_table(values: Sequence[Tensor], rows: int) -> bool:
    """Return whether tensors as long as the images are one table in fact.

    That is so if all batches have one object, or the same values which are
    not those of every image.

    Args:
        values (list[Tensor]): The tensors of the first batches.
        rows (int): Rows that each image would have.
    """
    first = values[0]
    if len(values) == 1 or not all(
        x is first or torch.equal(x, first) for x in values
    ):
        return False
    images = first.unflatten(0, (-1, rows))
    return all(x is first for x in values) or not torch.equal(
        images, images[:1].expand_as(images)
    )
