"""What an error at a unit's output does to the loss of the network.

Other than an objective of a reconstruction these are not normalised, so
that units compare: they are in nats an image, to second order.
"""

from __future__ import annotations

from typing import Any, Optional

import torch
from torch import Tensor, nn

from ..graph import Unit
from ..reconstruction import Rows
from ..reconstruction.likelihoods import teacher_gradients
from ..reconstruction.rows import tensors
from ..registry import TASK_UTILS


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
        self, draws: int = 4, likelihood: Optional[dict] = None
    ) -> None:
        self.draws = draws
        self.likelihood = TASK_UTILS.build(
            likelihood or dict(type='CategoricalSketch')
        )
        #: By draw and place of the output tensor.
        self.gradients: dict[tuple[int, int], Any] = {}

    def watch(
        self,
        teacher: nn.Module,
        unit: Unit,
        images: Rows,
        generator: torch.Generator,
    ) -> None:
        """See the gradients at one unit: passes forward and back.

        Args:
            teacher (nn.Module): The float network.
            unit (Unit): The unit.
            images (Rows): Preprocessed images; gradients are held where
                they are.
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

            teacher_gradients(
                teacher, [unit], images, self.likelihood, generator, collect
            )

    def collect(
        self,
        place: tuple[int, int],
        which: slice,
        gradient: Tensor,
        images: Rows,
    ) -> None:
        """Keep the gradient of some images.

        Args:
            place (tuple[int, int]): Which draw, and which output tensor.
            which (slice): The images.
            gradient (Tensor): Theirs.
            images (Rows): All images.
        """
        rows = gradient.reshape(which.stop - which.start, -1)
        if place not in self.gradients:
            self.gradients[place] = images.store.column(len(images), rows)
        self.gradients[place].write(which.start, rows)

    def __call__(self, output: Any, target: Any, images: slice) -> float:
        """The loss of some images, summed.

        Args:
            output (Any): The unit's output with something quantized.
            target (Any): Its float output, of the same form.
            images (slice): Which images they are.
        """
        count = images.stop - images.start
        change = [
            (out - goal).reshape(count, -1)
            for out, goal in zip(tensors(output), tensors(target))
        ]
        return self.loss(change, images) / (2 * self.draws)

    def loss(self, change: list[Tensor], images: slice) -> float:
        """Twice the loss of some images, summed over them and all draws.

        Args:
            change (list[Tensor]): Of the output tensors, N x K each.
            images (slice): Which images they are.
        """
        first_order = change[0].new_zeros(self.draws, len(change[0]))
        for (draw, i), column in self.gradients.items():
            gradient = column.between(images.start, images.stop)
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
        images: Rows,
    ) -> None:
        """Add to the mean of the squares."""
        rows = gradient.reshape(which.stop - which.start, -1)
        mean = rows.square().sum(0) / len(images)
        self.gradients[place] = self.gradients.get(place, 0) + mean

    def loss(self, change: list[Tensor], images: slice) -> float:
        """Their squares, weighted."""
        return sum(
            float((fisher * change[i].square()).sum())
            for (_, i), fisher in self.gradients.items()
        )
