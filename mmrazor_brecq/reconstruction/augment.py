"""More images from few: what the float network answers needs no labels.

Each of these takes a batch of images N x C x H x W and a generator, and
gives another batch of that shape.
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
    """What variations of images have in common."""

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Vary.

        Args:
            images (Tensor): N x C x H x W.
            generator (torch.Generator): Source of randomness, on the CPU.

        Returns:
            Tensor: As many, of the same size.
        """
        raise NotImplementedError


#: How a parameter says that it takes one.
AugmentationConfig = Annotated[dict, Config(Augmentation, TASK_UTILS)]


@TASK_UTILS.register_module()
class Flip(Augmentation):
    """Mirrors an image, left for right.

    Args:
        prob (float): Fraction of the images.
    """

    def __init__(self, prob: Fraction = 0.5) -> None:
        self.prob = prob

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Apply."""
        chosen = torch.rand(len(images), generator=generator) < self.prob
        chosen = chosen.to(images.device)[:, None, None, None]
        return torch.where(chosen, images.flip(-1), images)


@TASK_UTILS.register_module()
class Shift(Augmentation):
    """Moves an image, and repeats its border.

    Args:
        share (float): The most that it moves, of its height and width.
    """

    def __init__(self, share: Fraction = 1 / 16) -> None:
        self.share = share

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Apply."""
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
    """Puts a rectangle of another image into an image.

    Yun et al., "CutMix", ICCV 2019.

    Args:
        prob (float): Fraction of the images.
        size (tuple[float, float]): The sides of the rectangle, least and
            most, as shares of the image's.
    """

    def __init__(
        self,
        prob: Fraction = 0.5,
        size: tuple[Fraction, Fraction] = (0.25, 0.75),
    ) -> None:
        self.prob = prob
        self.size = size

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Apply."""
        n = len(images)
        low, high = self.size
        side = low + (high - low) * torch.rand(2, n, generator=generator)
        side *= torch.rand(n, generator=generator) < self.prob
        start = (1 - side) * torch.rand(2, n, generator=generator)
        inside = [
            (place >= a[:, None]) & (place < (a + b)[:, None])
            for place, a, b in zip(
                (_centres(images.shape[2]), _centres(images.shape[3])),
                start,
                side,
            )
        ]
        mask = inside[0][:, None, :, None] & inside[1][:, None, None, :]
        others = torch.randperm(n, generator=generator).to(images.device)
        return torch.where(mask.to(images.device), images[others], images)


@TASK_UTILS.register_module()
class MixUp(Augmentation):
    """Lays another image over an image, the fainter of the two.

    Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018;
    what the float network makes of it needs no mixed labels (Beyer et al.,
    "Knowledge distillation: A good teacher is patient and consistent",
    CVPR 2022).

    Args:
        prob (float): Fraction of the images.
        most (float): The most that the other image counts, up to a half.
    """

    def __init__(
        self, prob: Fraction = 0.5, most: Annotated[Fraction, Le(0.5)] = 0.5
    ) -> None:
        self.prob = prob
        self.most = most

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Apply."""
        n = len(images)
        part = self.most * torch.rand(n, generator=generator)
        part *= torch.rand(n, generator=generator) < self.prob
        others = torch.randperm(n, generator=generator).to(images.device)
        part = part.to(images)[:, None, None, None]
        return torch.lerp(images, images[others], part)


def _centres(size: int) -> Tensor:
    """Where pixels lie, from 0 to 1."""
    return (torch.arange(size) + 0.5) / size
