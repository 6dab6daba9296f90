"""Few images, varied into many, and what the float network says of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Callable

import torch
from torch import Tensor, nn

from ..graph import run_float
from .autocast import widened
from .processes import own_generator
from .rows import Rows, tensors


def said(network: nn.Module, images: Tensor) -> list[Tensor]:
    """What a network says of images, its output tensors in order."""
    return widened(tensors(run_float(network, images)))


class Lessons:
    """Batches of varied images, each the same whenever it is asked for.

    A batch is made from its seed, again and again, and takes no memory. The
    float network is asked once: its answers are held, unless they are large
    beside the images (those of a detector are).

    Args:
        teacher (nn.Module): The float network.
        images (Rows): Preprocessed inputs.
        batches (list[Tensor]): Which of them are in each batch.
        augment (list): What varies a batch, by a generator.
        seed (int): Of the variations.
    """

    #: Share of a batch's memory that answers to it may take.
    small = 1 / 32

    def __init__(
        self,
        teacher: nn.Module,
        images: Rows,
        batches: Sequence[Tensor],
        augment: Sequence[Callable[[Tensor, torch.Generator], Tensor]],
        seed: int,
    ) -> None:
        self.teacher = teacher
        self.images = images
        self.batches = batches
        self.augment = augment
        generator = own_generator(seed)
        self.seeds = torch.randint(
            2**62, (len(batches),), generator=generator
        ).tolist()
        self.answers: dict[tuple[int, int], list[Tensor]] = {}

    def __len__(self) -> int:
        return len(self.batches)

    def parts(
        self, k: int, size: int
    ) -> Iterator[tuple[Tensor, list[Tensor]]]:
        """The ``k``-th batch, some images at a time.

        Args:
            k (int): Below ``len(self)``.
            size (int): Images at a time.

        Yields:
            tuple[Tensor, list[Tensor]]: Images, and what is to be said of
            them.
        """
        batch = self.images.take(self.batches[k])
        generator = torch.Generator().manual_seed(self.seeds[k])
        for augment in self.augment:
            batch = augment(batch, generator)
        for i, part in enumerate(batch.split(size)):
            yield part, self._answers((k, i), part)

    @torch.no_grad()
    def _answers(self, place: tuple[int, int], part: Tensor) -> list[Tensor]:
        if place in self.answers:
            return self.answers[place]
        answers = said(self.teacher, part)
        if sum(x.numel() for x in answers) <= self.small * part.numel():
            self.answers[place] = answers
        return answers
