"""Calibration images: from a data loader, checked before work starts."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.dist import all_gather_object
from mmengine.logging import print_log
from torch import Tensor
from torch.utils.data import DataLoader

from ..algorithms import BRECQ


class ImageSet:
    """Remembers images by their content, as the pipeline gives them."""

    def __init__(self) -> None:
        self.seen: set[int] = set()

    @staticmethod
    def keys(data: dict) -> list[int]:
        """A number for each image of a batch."""
        return [
            hash(image.contiguous().cpu().numpy().tobytes())
            for image in data['inputs']
        ]

    def add(self, data: dict) -> None:
        """Remember the images of a batch."""
        self.seen.update(self.keys(data))

    def count(self, data: dict) -> int:
        """How many images of a batch are among the remembered ones."""
        return sum(key in self.seen for key in self.keys(data))


def collect_images(
    model: BRECQ, loader: DataLoader, num_images: int, images: ImageSet
) -> list[Tensor]:
    """The first images of a loader, preprocessed, on the model's device.

    Args:
        model (BRECQ): Its preprocessor is applied.
        loader (DataLoader): Where they come from.
        num_images (int): How many.
        images (ImageSet): Remembers them.

    Returns:
        list[Tensor]: Batches N x C x H x W.

    Raises:
        ValueError: If there are too few, or one that is not finite.
    """
    least = model.reconstructor.batch_size + 1
    if num_images < least:
        raise ValueError(
            f'calibration.num_images={num_images}, expected {least} or more: '
            'one batch to learn from (`model.reconstructor.batch_size`) and '
            'one image to judge by'
        )
    batches: list[Tensor] = []
    count = 0
    for data in loader:
        images.add(data)
        batch = _preprocess(model, data)[: num_images - count]
        bad = (~batch.flatten(1).isfinite().all(1)).nonzero().flatten()
        if len(bad):
            raise ValueError(
                f'Calibration image {count + int(bad[0])} holds NaN or '
                'infinity: mend it, or change `calibration.dataloader`'
            )
        batches.append(batch)
        count += len(batch)
        if count == num_images:
            break
    if count < num_images:
        raise ValueError(
            f'calibration.num_images={num_images}, but the data set of '
            f'`calibration.dataloader` gives {count} images: lower the '
            'number, or give it more images'
        )
    shapes = {tuple(batch.shape[1:]) for batch in batches}
    if len(shapes) > 1:
        raise ValueError(
            f'Calibration images have the sizes {shapes}: give '
            'them one size in the pipeline of '
            '`calibration.dataloader`'
        )
    return batches


def _preprocess(model: BRECQ, data: dict) -> Tensor:
    with torch.no_grad():
        inputs: Any = model.data_preprocessor(data, False)['inputs']
    return inputs.to(next(model.parameters()).device)


def gather_images(batches: list[Tensor]) -> list[Tensor]:
    """The batches of all processes, the same list on each."""
    return [
        batch.to(batches[0].device)
        for part in all_gather_object(batches)
        for batch in part
    ]


def warn_of_overlap(count: int, total: int) -> None:
    """Say so if calibration images are test images."""
    if count:
        print_log(
            f'{count} of the {total} calibration images are test images too: '
            'the accuracy of the quantized model will look better than it '
            'is. Point `calibration.dataloader.dataset` to training images',
            'current',
            30,
        )
