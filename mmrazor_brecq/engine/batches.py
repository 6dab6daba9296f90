"""Calibration images from a tensor, a data loader, or any batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Union

import torch
from torch import Tensor, nn

from ..functional import tensors
from ..graph import check_batch, check_images


def gather_images(
    network: nn.Module, source: Union[Tensor, Iterable], most: int
) -> Tensor:
    """Return calibration images, on the CPU if they come in batches.

    The first floating-point tensor of two or more dimensions has the images
    of a batch: a batch is a tensor, or any tuple, list or dict with one.
    Labels and all else are ignored.

    Args:
        network (nn.Module): The network.
        source (Tensor | iterable): All images, or batches of them.
        most (int): Images to take from batches, at most. No batch beyond is
            asked for.

    Returns:
        Tensor: N x ...

    Raises:
        ValueError: If a batch has no images, or those of two batches differ
            in size.
    """
    if isinstance(source, Tensor):
        check_batch(network, source)
        return source
    found = list(_parts(network, source, most))
    if not found:
        raise ValueError(
            '`images` gives no batch: an iterator that was read before is '
            'empty, so give the data loader itself'
        )
    return torch.cat(found)


def _parts(
    network: nn.Module, source: Iterable, most: int
) -> Iterator[Tensor]:
    """Yield the images of each batch until there are enough."""
    shape = None
    for number, batch in enumerate(source):
        part = next(
            (
                x
                for x in tensors(batch)
                if x.is_floating_point() and x.dim() > 1
            ),
            None,
        )
        if part is None:
            raise ValueError(
                f'Batch {number} of `images` is a {type(batch).__name__} '
                'without a floating-point tensor, expected preprocessed '
                'images, N x C x H x W, alone or first in a tuple, list or '
                'dict'
            )
        check_batch(network, check_images(part))
        if shape is not None and part.shape[1:] != shape:
            raise ValueError(
                f'Batch {number} of `images` has images of '
                f'{tuple(part.shape[1:])}, those before are of '
                f'{tuple(shape)}: resize them to one size'
            )
        shape = part.shape[1:]
        part = part.detach()[:most].cpu()
        yield part
        most -= len(part)
        if not most:
            break
