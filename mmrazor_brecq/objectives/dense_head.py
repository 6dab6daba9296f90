"""Recognize the maps of a dense head, such as that of a detector.

Such a head gives lists of maps, one map for each level of a pyramid: chances
of classes or of an object, each a logit of its own, and values such as boxes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def value_maps(outputs: Sequence[Tensor]) -> dict[int, tuple[int, ...]]:
    """Return which outputs are values of a dense head, such as boxes.

    The outputs are grouped to lists of levels. There is a dense head if two
    or more lists have maps of the same sizes, and one of them has logits of
    chances. Softmax has no such logits, since adding a number to all of them
    changes nothing and training leaves their mean where it was, near 0. A
    map of one channel beside maps of one level is no sign of a dense head:
    segmenters have it for edges.

    Args:
        outputs (list[Tensor]): Real outputs of a network, not empty.

    Returns:
        dict[int, tuple[int]]: For each index of a map of values the indices
        of the maps of chances of the same level.
    """
    groups = _levels(outputs)
    sizes = [[outputs[i].shape[2:] for i in group] for group in groups]
    found: dict[int, tuple[int, ...]] = {}
    for group, own in zip(groups, sizes):
        beside = [g for g, size in zip(groups, sizes) if size == own]
        chances = [g for g in beside if _are_chances(outputs, g)]
        several = any(outputs[g[0]].shape[1] > 1 for g in chances)
        if group not in chances and chances and (several or len(group) > 1):
            found.update(zip(group, zip(*chances)))
    return found


def _levels(outputs: Sequence[Tensor]) -> list[list[int]]:
    """Return lists of maps with the same channels, each smaller than the last.

    Args:
        outputs (list[Tensor]): Outputs, of which those of N x C x H x W are
            maps.
    """
    groups: list[list[int]] = []
    for i, out in enumerate(outputs):
        if out.dim() != 4:
            continue
        last = outputs[groups[-1][-1]] if groups else None
        if (
            last is not None
            and groups[-1][-1] == i - 1
            and last.shape[1] == out.shape[1]
            and last[0, 0].numel() > out[0, 0].numel()
        ):
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def _are_chances(outputs: Sequence[Tensor], group: Sequence[int]) -> bool:
    """Return whether maps are logits of chances.

    One channel is. Of several, all are below 0 at most positions, for most
    of an image is no object.
    """
    if outputs[group[0]].shape[1] == 1:
        return True
    largest = [outputs[i].amax(1).flatten() for i in group]
    return bool(torch.cat(largest).median() < 0)


def chance_of_object(chances: Sequence[Tensor]) -> Tensor:
    """Return how likely an object is at each position, N x 1 x H x W.

    Args:
        chances (list[Tensor]): Maps of logits of one level.
    """
    found = torch.ones_like(chances[0][:, :1])
    for logits in chances:
        found = found * logits.detach().sigmoid().amax(1, keepdim=True)
    return found
