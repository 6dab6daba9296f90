"""Augmentations: random variations of calibration images.

They need no labels, because the float network computes the outputs that are
wanted for the varied images.
"""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Le
from torch import Tensor
from torch.nn import functional as F

from ..registry import TASK_UTILS
from ..validation import Config, Fraction


class Augmentation:
    """Base class of augmentations.

    Example:
        >>> refiner = dict(
        ...     type='NetworkRefiner',
        ...     augment=[dict(type='Shift'), dict(type='CutMix', prob=0.5)],
        ... )
    """

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return images that are varied at random.

        Args:
            images (Tensor): N x C x H x W. They are not changed.
            generator (torch.Generator): Source of randomness, on the CPU.

        Returns:
            Tensor: N x C x H x W.
        """
        raise NotImplementedError


#: Type of a parameter that takes the config of an augmentation.
AugmentationConfig = Annotated[dict, Config(Augmentation, TASK_UTILS)]


@TASK_UTILS.register_module()
class Flip(Augmentation):
    """Augmentation that mirrors images from left to right.

    Args:
        prob (float): Probability that an image is mirrored, 0 to 1.
    """

    def __init__(self, prob: Fraction = 0.5) -> None:
        self.prob = prob

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return images of which some are mirrored."""
        chosen = torch.rand(len(images), generator=generator) < self.prob
        chosen = chosen.to(images.device)[:, None, None, None]
        return torch.where(chosen, images.flip(-1), images)


@TASK_UTILS.register_module()
class Shift(Augmentation):
    """Augmentation that moves images and repeats their borders.

    Args:
        share (float): Maximum shift, as a fraction of height and width, 0 to
            1.
    """

    def __init__(self, share: Fraction = 1 / 16) -> None:
        self.share = share

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return images that are moved, each by its own offset."""
        n, _, height, width = images.shape
        down, right = round(height * self.share), round(width * self.share)
        wide = F.pad(images, (right, right, down, down), mode='replicate')
        tops = torch.randint(2 * down + 1, (n,), generator=generator)
        lefts = torch.randint(2 * right + 1, (n,), generator=generator)
        moved = [
            image[:, top : top + height, left : left + width]
            for image, top, left in zip(wide, tops.tolist(), lefts.tolist())
        ]
        return torch.stack(moved)


@TASK_UTILS.register_module()
class CutMix(Augmentation):
    """Augmentation that pastes a rectangle of another image.

    Yun et al., "CutMix", ICCV 2019.

    Args:
        prob (float): Probability that an image is changed, 0 to 1.
        size (tuple[float, float]): Minimum and maximum side of the
            rectangle, as fractions of the image's sides, 0 to 1.
    """

    def __init__(
        self,
        prob: Fraction = 0.5,
        size: tuple[Fraction, Fraction] = (0.25, 0.75),
    ) -> None:
        self.prob = prob
        self.size = size

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return images of which some have a rectangle of another."""
        n = len(images)
        low, high = self.size
        side = low + (high - low) * torch.rand(2, n, generator=generator)
        side *= torch.rand(n, generator=generator) < self.prob
        start = (1 - side) * torch.rand(2, n, generator=generator)
        rows = _inside(images.shape[2], start[0], side[0])
        columns = _inside(images.shape[3], start[1], side[1])
        mask = rows[:, None, :, None] & columns[:, None, None, :]
        others = torch.randperm(n, generator=generator).to(images.device)
        return torch.where(mask.to(images.device), images[others], images)


@TASK_UTILS.register_module()
class MixUp(Augmentation):
    """Augmentation that blends another image into an image.

    Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018. The
    float network's output for the blend replaces mixed labels (Beyer et al.,
    "Knowledge distillation: A good teacher is patient and consistent", CVPR
    2022).

    Args:
        prob (float): Probability that an image is changed, 0 to 1.
        most (float): Maximum weight of the other image, 0 to 0.5.
    """

    def __init__(
        self, prob: Fraction = 0.5, most: Annotated[Fraction, Le(0.5)] = 0.5
    ) -> None:
        self.prob = prob
        self.most = most

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return images of which some are blended with another."""
        n = len(images)
        weight = self.most * torch.rand(n, generator=generator)
        weight *= torch.rand(n, generator=generator) < self.prob
        others = torch.randperm(n, generator=generator).to(images.device)
        weight = weight.to(images)[:, None, None, None]
        return torch.lerp(images, images[others], weight)


def _inside(size: int, start: Tensor, side: Tensor) -> Tensor:
    """Return which pixels of a row or column are in an interval.

    Args:
        size (int): Number of pixels.
        start (Tensor): Start of each image's interval, 0 to 1, of shape N.
        side (Tensor): Length of each interval, 0 to 1, of shape N.

    Returns:
        Tensor: Booleans, N x ``size``.
    """
    centers = (torch.arange(size) + 0.5) / size
    return (centers >= start[:, None]) & (centers < (start + side)[:, None])
