"""Nested arguments and outputs of many images, taken image by image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Callable

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten


def tensors(nested: Any) -> list[Tensor]:
    """The tensors in a nested structure, in order."""
    return [x for x in tree_flatten(nested)[0] if isinstance(x, Tensor)]


class Rows:
    """Structures of tensors whose first dimension runs over images.

    A tensor belongs to the images if its first dimension is, in every
    part, the same multiple of the part's number of images (a Swin block
    sees many windows an image). All else is the same for all images, and
    so is a table that only happens to be as long.

    Args:
        parts (list): One structure a batch, all of the same form.
        sizes (list[int]): Images in each batch.

    Raises:
        ValueError: If tensors of several batches differ in their other
            dimensions.
    """

    def __init__(self, parts: Sequence[Any], sizes: Sequence[int]) -> None:
        self.sizes = list(sizes)
        flat = [tree_flatten(part) for part in parts]
        self.spec = flat[0][1]
        self.leaves: list[Any] = []
        self.folds: list[int] = []
        for column in zip(*(leaves for leaves, _ in flat)):
            fold = self._images_fold(column)
            self.folds.append(fold)
            self.leaves.append(self._cat(column) if fold else column[0])

    def _images_fold(self, column: Sequence[Any]) -> int:
        if not all(isinstance(x, Tensor) and x.dim() for x in column):
            return 0
        folds = {
            divmod(x.shape[0], size) for x, size in zip(column, self.sizes)
        }
        fold, rest = folds.pop()
        if folds or rest or not fold or _constant(column, fold):
            return 0
        return fold

    @staticmethod
    def _cat(column: Sequence[Tensor]) -> Tensor:
        shapes = {tuple(x.shape[1:]) for x in column}
        if len(shapes) > 1:
            raise ValueError(
                'Calibration images differ in size: activations of shapes '
                f'{sorted(shapes)} cannot be held together. Use a '
                'calibration pipeline that gives all images one size'
            )
        return torch.cat(list(column))

    def __len__(self) -> int:
        return sum(self.sizes)

    def take(self, index: Tensor) -> Any:
        """The structure of some images.

        Args:
            index (Tensor): Whole numbers below ``len(self)``.
        """
        return tree_unflatten(
            [
                self._take(leaf, fold, index) if fold else leaf
                for leaf, fold in zip(self.leaves, self.folds)
            ],
            self.spec,
        )

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
        leaves = []
        for x, y, fold in zip(self.leaves, other.leaves, self.folds):
            if fold:
                x = self._take(x, fold, index)
                if x.is_floating_point():
                    x = mix(x, self._take(y, fold, index))
            leaves.append(x)
        return tree_unflatten(leaves, self.spec)

    @staticmethod
    def _take(leaf: Tensor, fold: int, index: Tensor) -> Tensor:
        index = index.to(leaf.device)
        if fold > 1:
            return leaf.unflatten(0, (-1, fold))[index].flatten(0, 1)
        return leaf.index_select(0, index)

    def split(self) -> Iterator[Any]:
        """The structures batch by batch, as they came."""
        for index in torch.arange(len(self)).split(self.sizes):
            yield self.take(index)


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
