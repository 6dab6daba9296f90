"""Estimate what an error at a unit's output does to the network's loss.

Unlike the objectives of a reconstruction, these errors are not normalized,
so that those of several units can be compared: they are in nats an image,
to second order.
"""

from __future__ import annotations

import logging
from typing import Any, Optional

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from ..activations import CachedBatches
from ..functional import Nested, tensors
from ..graph import Unit
from ..objectives import LikelihoodConfig, teacher_gradients
from ..registry import TASK_UTILS
from ..validation import Count


@TASK_UTILS.register_module()
class FisherError:
    """Half the squared first-order change of the loss.

    ``1/2 (g . dz)^2`` for each image's own gradients ``g`` of the teacher's
    loss at the unit's output ``z``. The gradients are drawn at random, and
    the mean is ``1/2 dz^T F dz`` with the whole Fisher matrix ``F`` (BRECQ,
    eq. 7 to 9), errors that add up or cancel included.

    The gradients of all images at one unit are cached.

    Args:
        draws (int): Gradients for each image.
        likelihood (dict, optional): Config of the teacher's loss; by default
            it follows from the form of the output.
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
        #: What is known of the gradients, by draw and output tensor.
        self.gradients: dict[tuple[int, int], Any] = {}

    def watch(
        self,
        teacher: nn.Module,
        unit: Unit,
        images: CachedBatches,
        generator: torch.Generator,
    ) -> None:
        """Compute the gradients at one unit, in passes forward and back.

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
                output: tuple[str, int],
                chosen: slice,
                gradient: Tensor,
                draw: int = draw,
            ) -> None:
                # A tensor with other rows belongs to no image.
                if len(gradient) % (chosen.stop - chosen.start) == 0:
                    by_image = gradient.reshape(chosen.stop - chosen.start, -1)
                    self.collect((draw, output[1]), chosen, by_image, images)

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
        key: tuple[int, int],
        chosen: slice,
        gradient: Tensor,
        images: CachedBatches,
    ) -> None:
        """Keep the gradient of some images.

        Args:
            key (tuple[int, int]): Index of the draw, and of the output
                tensor.
            chosen (slice): Which images these are.
            gradient (Tensor): N x K for N images.
            images (CachedBatches): All images.
        """
        if key not in self.gradients:
            self.gradients[key] = images.store.allocate(len(images), gradient)
        self.gradients[key].write(chosen.start, gradient)

    def __call__(self, output: Nested, target: Nested, chosen: slice) -> float:
        """Return the loss of some images, summed, in nats.

        Args:
            output (Nested): The unit's output with something quantized.
            target (Nested): Its float output, of the same form.
            chosen (slice): Which images these are.
        """
        count = chosen.stop - chosen.start
        pairs = list(zip(tensors(output), tensors(target)))
        if not self.gradients:
            return count * sum(map(_relative_square, *zip(*pairs)))
        change = {
            i: torch.sub(*pairs[i]).reshape(count, -1)
            for i in {i for _, i in self.gradients}
        }
        return self.sum_draws(change, chosen) / (2 * self.draws)

    def sum_draws(self, change: dict[int, Tensor], chosen: slice) -> float:
        """Return twice the loss, summed over images and draws.

        Args:
            change (dict[int, Tensor]): Change of the output tensors that
                have gradients, by their index, N x K each.
            chosen (slice): Which images these are.
        """
        some = next(iter(change.values()))
        first_order = some.new_zeros(self.draws, len(some))
        for (draw, i), cached in self.gradients.items():
            gradient = cached.read(chosen.start, chosen.stop)
            first_order[draw] += (gradient * change[i]).sum(1)
        return float(first_order.square().sum())


@TASK_UTILS.register_module()
class FisherDiagError(FisherError):
    """Squared error weighted by the diagonal of the Fisher information.

    ``1/2 sum_k F_k dz_k^2``, where ``F`` is the mean over images of the
    squared gradient (BRECQ, eq. 10). It does not see that the errors of two
    elements add up or cancel.

    Args:
        draws (int): Gradients for each image.
        likelihood (dict, optional): Config of the teacher's loss; by default
            it follows from the form of the output.
    """

    def collect(
        self,
        key: tuple[int, int],
        chosen: slice,
        gradient: Tensor,
        images: CachedBatches,
    ) -> None:
        """Add to the mean of the squared gradients."""
        mean = gradient.square().sum(0) / len(images)
        self.gradients[key] = self.gradients.get(key, 0) + mean

    def sum_draws(self, change: dict[int, Tensor], chosen: slice) -> float:
        """Return the weighted squares, summed over images and draws."""
        return sum(
            float((fisher * change[i].square()).sum())
            for (_, i), fisher in self.gradients.items()
        )


def _relative_square(output: Tensor, target: Tensor) -> float:
    """Return the squared error over the square of a real target, else 0."""
    if not target.is_floating_point():
        return 0.0
    energy = target.square().sum().clamp(min=1e-30)
    return float((output - target).square().sum() / energy)
