"""Nested arguments and outputs of many images, taken image by image."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, chain, islice
from typing import Any, Callable, Optional

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from .store import Column, Store


def tensors(nested: Any) -> list[Tensor]:
    """The tensors in a nested structure, in order."""
    return [x for x in tree_leaves(nested) if isinstance(x, Tensor)]


#: Numbers that images may have which pass a whole network together: forward,
#: and forward and back, when all that is between is kept.
FORWARD, AND_BACK = 2**20, 2**19


def at_once(elements: int, most: int, room: int = 3 * 2**20) -> int:
    """How many images run together, so that they need little memory.

    Args:
        elements (int): Numbers that an image has.
        most (int): Images at the most.
        room (int): Numbers that all of them may have.
    """
    return max(1, min(most, room // max(1, elements)))


class Rows:
    """Structures of tensors whose first dimension runs over images.

    A tensor belongs to the images if its first dimension is, in the first
    two parts, the same multiple of the part's number of images (a Swin
    block sees many windows an image). All else is the same for all images,
    and so is a table that only happens to be as long.

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
        self.spec = tree_flatten(first[0])[1]
        self.leaves = [
            self._leaf(column) for column in zip(*map(tree_leaves, first))
        ]
        for k, part in enumerate(chain(first, parts)):
            pairs = [
                (leaf, x)
                for leaf, x in zip(self.leaves, tree_leaves(part))
                if isinstance(leaf, Column)
            ]
            for column, x in pairs:
                column.write(self.starts[k], x)
            if after is not None:
                after(k, pairs)

    def _leaf(self, column: Sequence[Any]) -> Any:
        """Room for what is of images, else what it is for all of them."""
        fold = _images_fold(column, self.sizes)
        if not fold:
            return column[0]
        return self.store.column(len(self), column[0], fold)

    def __len__(self) -> int:
        return self.starts[-1]

    @property
    def elements(self) -> int:
        """Numbers that an image has."""
        return sum(x.elements for x in self.leaves if isinstance(x, Column))

    def take(self, index: Tensor) -> Any:
        """The structure of some images.

        Args:
            index (Tensor): Whole numbers below ``len(self)``.
        """
        return self._map(lambda column: column.take(index))

    def batch(self, k: int) -> Any:
        """The structure of the ``k``-th part, as it came."""
        return self._map(lambda x: x.between(*self.starts[k : k + 2]))

    def split(self) -> Iterator[Any]:
        """The structures batch by batch, as they came."""
        return map(self.batch, range(len(self.sizes)))

    def mixed(
        self,
        other: Rows,
        index: Tensor,
        mix: Callable[[Tensor, Tensor], Tensor],
    ) -> Any:
        """The structure of some images, its real tensors mixed with others.

        Args:
            other (Rows): Of the same form.
            index (Tensor): Whole numbers below ``len(self)``.
            mix (callable): From two tensors of images to one.
        """
        if other is self:
            return self.take(index)
        leaves = []
        for x, y in zip(self.leaves, other.leaves):
            if isinstance(x, Column):
                x = x.take(index)
                if x.is_floating_point():
                    x = mix(x, y.take(index))
            leaves.append(x)
        return tree_unflatten(leaves, self.spec)

    def _map(self, take: Callable[[Column], Tensor]) -> Any:
        leaves = [take(x) if isinstance(x, Column) else x for x in self.leaves]
        return tree_unflatten(leaves, self.spec)


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
