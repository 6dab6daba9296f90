"""What an error at a unit's output does to the loss of the network.

Other than an objective of a reconstruction these are not normalised, so
that units compare: they are in nats an image, to second order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Optional

import torch
from torch import Tensor, nn

from ..graph import Unit
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
        self.gradients: dict[int, Tensor] = {}

    def watch(
        self,
        teacher: nn.Module,
        unit: Unit,
        batches: Sequence[Tensor],
        generator: torch.Generator,
    ) -> None:
        """See the gradients at one unit: passes forward and back.

        Args:
            teacher (nn.Module): The float network.
            unit (Unit): The unit.
            batches (list[Tensor]): Preprocessed images.
            generator (torch.Generator): Source of randomness.
        """
        images = sum(map(len, batches))
        found: dict[int, list[Tensor]] = {}
        for _ in range(self.draws):
            teacher_gradients(
                teacher,
                [unit],
                batches,
                self.likelihood,
                generator,
                lambda name, i, g: found.setdefault(i, []).append(g),
            )
        self.gradients = {
            i: self.reduce(torch.cat(parts).reshape(self.draws, images, -1))
            for i, parts in found.items()
        }

    def reduce(self, gradients: Tensor) -> Tensor:
        """What to keep of the gradients, draws x images x elements."""
        return gradients

    def __call__(self, output: Any, target: Any, images: slice) -> float:
        """The loss of some images, summed.

        Args:
            output (Any): The unit's output with something quantized.
            target (Any): Its float output, of the same form.
            images (slice): Which images they are.
        """
        pairs = list(zip(tensors(output), tensors(target)))
        count = images.stop - images.start
        return self.loss(
            {
                i: (pairs[i][0] - pairs[i][1]).reshape(count, -1)
                for i in self.gradients
            },
            images,
        )

    def loss(self, change: dict[int, Tensor], images: slice) -> float:
        """The loss that changes of the output tensors cause.

        Args:
            change (dict[int, Tensor]): By place of the tensor, N x K.
            images (slice): Which images they are.
        """
        first_order = sum(
            torch.einsum('dnk,nk->dn', self.gradients[i][:, images], dz)
            for i, dz in change.items()
        )
        squares = torch.as_tensor(first_order).square()
        return float(squares.sum()) / (2 * self.draws)


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

    def reduce(self, gradients: Tensor) -> Tensor:
        """The mean square of each element."""
        return gradients.square().mean((0, 1))

    def loss(self, change: dict[int, Tensor], images: slice) -> float:
        """Their squares, weighted."""
        return sum(
            float((self.gradients[i] * dz.square()).sum()) / 2
            for i, dz in change.items()
        )
