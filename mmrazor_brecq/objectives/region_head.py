"""Recognize what the second stage of a detector says of regions.

Of each region it gives the logits of its classes, the last one being the
background, and beside them values, such as boxes, and masks.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

#: Coordinates of a box.
BOX = 4


def values_of_regions(
    outputs: Sequence[Tensor], images: int
) -> tuple[dict[int, int], set[int]]:
    """Return which outputs are boxes of regions, and which are masks.

    Regions are the rows of an output that has several for each image. C
    classes and the background have C + 1 columns there; boxes have 4, or 4
    for each class, and masks a channel for each class, or one.

    Args:
        outputs (list[Tensor]): Real outputs of a network, not empty.
        images (int): Number of images.

    Returns:
        tuple[dict[int, int], set[int]]: For each index of boxes that of the
        classes, and the indices of masks.
    """
    tables = {
        i: out
        for i, out in enumerate(outputs)
        if out.dim() == 2 and len(out) > images and not len(out) % images
    }
    boxes: dict[int, int] = {}
    masks: set[int] = set()
    for i, table in tables.items():
        classes = table.shape[1] - 1
        beside = {
            k: out
            for k, out in enumerate(outputs)
            if k != i and out.dim() and len(out) == len(table)
        }
        found = [
            k
            for k in tables
            if k in beside
            and tables[k].shape[1] in (BOX, BOX * classes)
            and k not in boxes.values()
        ]
        if classes and found and i not in boxes:
            boxes.update(dict.fromkeys(found, i))
            masks.update(
                k
                for k, out in beside.items()
                if out.dim() == 4 and out.shape[1] in (1, classes)
            )
    return boxes, masks


def chance_of_box(logits: Tensor, columns: int) -> Tensor:
    """Return how likely each coordinate of a region's boxes matters.

    Args:
        logits (Tensor): R x (C + 1), the background last.
        columns (int): 4, or 4 x C for boxes of each class.

    Returns:
        Tensor: R x 1, the chance of any object, or R x 4 C, the chance of
        the class of each box.
    """
    chances = logits.detach().softmax(1)[:, :-1]
    if columns == BOX:
        return chances.sum(1, keepdim=True)
    return chances.repeat_interleave(BOX, 1)
