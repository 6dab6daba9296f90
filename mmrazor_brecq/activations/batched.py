"""Nested arguments and outputs of many images, taken image by image."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, chain, islice
from typing import Any, Callable, NamedTuple, Optional

import torch
from torch import Tensor

from ..functional import flatten, leaves, map_tensors
from .store import CachedTensor, Store

#: Numbers that images may have which pass a whole network together: forward,
#: and forward and back, when all that is between is kept.
MAX_ELEMENTS_FORWARD, MAX_ELEMENTS_BACKWARD = 2**20, 2**19


def images_per_pass(
    elements: int, max_images: int, max_elements: int = 3 * 2**20
) -> int:
    """How many images run together, so that they need little memory.

    Args:
        elements (int): Numbers that an image has.
        max_images (int): Images at the most.
        max_elements (int): Elements that all of them may have.
    """
    return max(1, min(max_images, max_elements // max(1, elements)))


class CachedBatches:
    """Structures of tensors whose first dimension runs over images.

    A tensor belongs to the images if its first dimension is, in the first
    two parts, the same multiple of the part's number of images (a Swin
    block sees many windows an image). All else is of no image, and so is a
    table that only happens to be as long: each batch keeps what it came
    with, and images that are taken from several have that of the first.

    Args:
        parts (iterable): One structure a batch, all of the same form; each
            is asked for when those before it are held.
        sizes (list[int]): Images in each batch.
        store (Store, optional): Where they are held.
        after (callable, optional): Called when a part is held, with its
            number and each of its tensors that is of images, beside the
            column that holds it.

    Raises:
        ValueError: If tensors of several batches differ in their other
            dimensions.
    """

    def __init__(
        self,
        parts: Iterable[Any],
        sizes: Sequence[int],
        store: Optional[Store] = None,
        after: Optional[Callable[[int, list], None]] = None,
    ) -> None:
        self.sizes = list(sizes)
        self.starts = list(accumulate(sizes, initial=0))
        self.store = store or Store()
        parts = iter(parts)
        first = list(islice(parts, 2))
        found, self.rebuild = flatten(first[0])
        self.leaves = [
            self._leaf(column) for column in zip(*map(leaves, first))
        ]
        # What only some batches have is of no image either.
        self.leaves += found[len(self.leaves) :]
        #: Of each batch what is of no image, if it is not that of the first;
        #: or the whole of a batch that has another form.
        self.own: list[Any] = []
        for k, part in enumerate(chain(first, parts)):
            pairs = self._hold(k, part)
            if after is not None:
                after(k, pairs)

    def _hold(self, k: int, part: Any) -> list[tuple[CachedTensor, Tensor]]:
        """Write down the ``k``-th part; gives tensors and their columns."""
        found = leaves(part)
        if len(found) != len(self.leaves):
            self.own.append(_Whole(part))
            return []
        pairs = [
            (leaf, x)
            for leaf, x in zip(self.leaves, found)
            if isinstance(leaf, CachedTensor)
        ]
        for column, x in pairs:
            column.write(self.starts[k], x)
        own = {
            i: x
            for i, (leaf, x) in enumerate(zip(self.leaves, found))
            if x is not leaf and not isinstance(leaf, CachedTensor)
        }
        self.own.append(own)
        return pairs

    def _leaf(self, column: Sequence[Any]) -> Any:
        """Room for what is of images, else what it is for all of them."""
        fold = _images_fold(column, self.sizes)
        if not fold:
            return column[0]
        return self.store.allocate(len(self), column[0], fold)

    def __len__(self) -> int:
        return self.starts[-1]

    @property
    def elements(self) -> int:
        """Numbers that an image has."""
        return sum(
            x.elements for x in self.leaves if isinstance(x, CachedTensor)
        )

    def take(self, index: Tensor) -> Any:
        """The structure of some images.

        Args:
            index (Tensor): Whole numbers below ``len(self)``.
        """
        found = [
            x.take(index) if isinstance(x, CachedTensor) else x
            for x in self.leaves
        ]
        return self.rebuild(found)

    def batch(self, k: int) -> Any:
        """The structure of the ``k``-th part, as it came."""
        own = self.own[k]
        if isinstance(own, _Whole):
            return map_tensors(Tensor.clone, own.part)
        span = self.starts[k : k + 2]
        found = [
            x.read(*span) if isinstance(x, CachedTensor) else own.get(i, x)
            for i, x in enumerate(self.leaves)
        ]
        return self.rebuild(found)

    def split(self) -> Iterator[Any]:
        """The structures batch by batch, as they came."""
        return map(self.batch, range(len(self.sizes)))

    def take_mixed(
        self,
        other: CachedBatches,
        index: Tensor,
        mix: Callable[[Tensor, Tensor], Tensor],
    ) -> Any:
        """The structure of some images, its real tensors mixed with others.

        Args:
            other (CachedBatches): Of the same form.
            index (Tensor): Whole numbers below ``len(self)``.
            mix (callable): From two tensors of images to one.
        """
        if other is self:
            return self.take(index)
        found = []
        for x, y in zip(self.leaves, other.leaves):
            if isinstance(x, CachedTensor):
                x = x.take(index)
                if x.is_floating_point():
                    x = mix(x, y.take(index))
            found.append(x)
        return self.rebuild(found)


class _Whole(NamedTuple):
    """A part that has not the form of the first."""

    part: Any


def _images_fold(column: Sequence[Any], sizes: Sequence[int]) -> int:
    """Rows an image, 0 for what is of no image."""
    if not all(isinstance(x, Tensor) and x.dim() for x in column):
        return 0
    folds = {divmod(x.shape[0], size) for x, size in zip(column, sizes)}
    fold, rest = folds.pop()
    if folds or rest or not fold or _constant(column, fold):
        return 0
    return fold


def _constant(column: Sequence[Tensor], fold: int) -> bool:
    """Whether tensors that could be of images are one table in fact.

    One object in all batches, or the same values in all of them, though
    not for all images.
    """
    first = column[0]
    if len(column) == 1 or not all(
        x is first or torch.equal(x, first) for x in column
    ):
        return False
    images = first.unflatten(0, (-1, fold))
    return all(x is first for x in column) or not torch.equal(
        images, images[:1].expand_as(images)
    )
