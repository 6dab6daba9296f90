"""What an error at a unit's output does to the loss of the network.

Other than an objective of a reconstruction these are not normalised, so
that units compare: they are in nats an image, to second order.
"""

from __future__ import annotations

import logging
from typing import Any, Optional

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from ..activations import CachedBatches
from ..functional import tensors
from ..graph import Unit
from ..objectives import LikelihoodConfig, teacher_gradients
from ..registry import TASK_UTILS
from ..validation import Count


@TASK_UTILS.register_module()
class FisherError:
    """Half the squared change of the loss to first order.

    ``1/2 (g . dz)^2`` for each image's own gradients ``g`` of the teacher's
    loss at the unit's output ``z``, which are drawn: its mean is
    ``1/2 dz^T F dz`` with the whole Fisher matrix ``F`` (BRECQ, eq. 7 to
    9), errors that add up or cancel included.

    It holds the gradients of all images at one unit.

    Args:
        draws (int): Gradients an image.
        likelihood (dict): The teacher's loss.
    """

    def __init__(
        self,
        draws: Count = 4,
        likelihood: Optional[LikelihoodConfig] = None,
    ) -> None:
        self.draws = draws
        classes = dict(type='CategoricalSketch')
        self.likelihood = TASK_UTILS.build(
            likelihood or dict(type='FromOutput', classes=classes)
        )
        #: By draw and place of the output tensor.
        self.gradients: dict[tuple[int, int], Any] = {}

    def watch(
        self,
        teacher: nn.Module,
        unit: Unit,
        images: CachedBatches,
        generator: torch.Generator,
    ) -> None:
        """See the gradients at one unit: passes forward and back.

        Args:
            teacher (nn.Module): The float network.
            unit (Unit): The unit.
            images (CachedBatches): Preprocessed images; gradients are
                cached in the same store.
            generator (torch.Generator): Source of randomness.
        """
        self.gradients = {}
        for draw in range(self.draws):

            def collect(
                place: tuple[str, int],
                which: slice,
                gradient: Tensor,
                draw: int = draw,
            ) -> None:
                self.collect((draw, place[1]), which, gradient, images)

            reached = teacher_gradients(
                teacher, [unit], images, self.likelihood, generator, collect
            )
            if not reached:
                print_log(
                    "No gradient of the network's outputs reaches "
                    f'{unit.name}: its errors count by their squares, '
                    "relative to the output's",
                    'current',
                    logging.WARNING,
                )
                break

    def collect(
        self,
        place: tuple[int, int],
        which: slice,
        gradient: Tensor,
        images: CachedBatches,
    ) -> None:
        """Keep the gradient of some images.

        Args:
            place (tuple[int, int]): Which draw, and which output tensor.
            which (slice): The images.
            gradient (Tensor): Theirs.
            images (CachedBatches): All images.
        """
        if len(gradient) % (which.stop - which.start):  # of no image
            return
        rows = gradient.reshape(which.stop - which.start, -1)
        if place not in self.gradients:
            self.gradients[place] = images.store.allocate(len(images), rows)
        self.gradients[place].write(which.start, rows)

    def __call__(self, output: Any, target: Any, images: slice) -> float:
        """The loss of some images, summed.

        Args:
            output (Any): The unit's output with something quantized.
            target (Any): Its float output, of the same form.
            images (slice): Which images they are.
        """
        count = images.stop - images.start
        pairs = list(zip(tensors(output), tensors(target)))
        if not self.gradients:
            return count * sum(map(_relative_square, *zip(*pairs)))
        change = {
            i: torch.sub(*pairs[i]).reshape(count, -1)
            for i in {i for _, i in self.gradients}
        }
        return self.loss(change, images) / (2 * self.draws)

    def loss(self, change: dict[int, Tensor], images: slice) -> float:
        """Twice the loss of some images, summed over them and all draws.

        Args:
            change (dict[int, Tensor]): Of the output tensors that have
                gradients, by their place, N x K each.
            images (slice): Which images they are.
        """
        some = next(iter(change.values()))
        first_order = some.new_zeros(self.draws, len(some))
        for (draw, i), column in self.gradients.items():
            gradient = column.read(images.start, images.stop)
            first_order[draw] += (gradient * change[i]).sum(1)
        return float(first_order.square().sum())


@TASK_UTILS.register_module()
class FisherDiagError(FisherError):
    """Squared error weighted by the diagonal of the Fisher information.

    ``1/2 sum_k F_k dz_k^2``, with the mean over images of the squared
    gradient for ``F`` (BRECQ, eq. 10). It knows nothing of elements whose
    errors add up or cancel.

    Args:
        draws (int): Gradients an image.
        likelihood (dict): The teacher's loss.
    """

    def collect(
        self,
        place: tuple[int, int],
        which: slice,
        gradient: Tensor,
        images: CachedBatches,
    ) -> None:
        """Add to the mean of the squares."""
        if len(gradient) % (which.stop - which.start):  # of no image
            return
        rows = gradient.reshape(which.stop - which.start, -1)
        mean = rows.square().sum(0) / len(images)
        self.gradients[place] = self.gradients.get(place, 0) + mean

    def loss(self, change: dict[int, Tensor], images: slice) -> float:
        """Their squares, weighted."""
        return sum(
            float((fisher * change[i].square()).sum())
            for (_, i), fisher in self.gradients.items()
        )


def _relative_square(output: Tensor, target: Tensor) -> float:
    """The squared error over the square of the target, of real numbers."""
    if not target.is_floating_point():
        return 0.0
    energy = target.square().sum().clamp(min=1e-30)
    return float((output - target).square().sum() / energy)
