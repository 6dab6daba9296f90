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

    ``1/2 (g . dz)^2`` for each image's own gradient ``g`` of the teacher's
    loss at the unit's output ``z``, with a label drawn from the teacher's
    own softmax: its mean over images is ``1/2 dz^T F dz`` with the whole
    Fisher matrix ``F`` (BRECQ, eq. 7 to 9).

    It holds one gradient an image for one unit.

    Args:
        likelihood (dict): The teacher's loss.
    """

    def __init__(self, likelihood: Optional[dict] = None) -> None:
        self.likelihood = TASK_UTILS.build(
            likelihood or dict(type='Categorical')
        )
        self.gradients: dict[int, Tensor] = {}

    def watch(
        self,
        teacher: nn.Module,
        unit: Unit,
        batches: Sequence[Tensor],
        generator: torch.Generator,
    ) -> None:
        """See the gradients at one unit: a pass forward and back an image.

        Args:
            teacher (nn.Module): The float network.
            unit (Unit): The unit.
            batches (list[Tensor]): Preprocessed images.
            generator (torch.Generator): Source of randomness.
        """
        found: dict[int, list[Tensor]] = {}
        teacher_gradients(
            teacher,
            [unit],
            batches,
            self.likelihood,
            generator,
            lambda name, i, gradient: found.setdefault(i, []).append(gradient),
        )
        self.gradients = {
            i: self.reduce(torch.cat(parts)) for i, parts in found.items()
        }

    def reduce(self, gradients: Tensor) -> Tensor:
        """What to keep of the gradients of all images, N x ..."""
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
        total = sum(
            (self._rows(i)[images] * dz).sum(1) for i, dz in change.items()
        )
        return float(torch.as_tensor(total).square().sum()) / 2

    def _rows(self, i: int) -> Tensor:
        return self.gradients[i].flatten(1)


@TASK_UTILS.register_module()
class FisherDiagError(FisherError):
    """Squared error weighted by the diagonal of the Fisher information.

    ``1/2 sum_k F_k dz_k^2``, with the mean over images of the squared
    gradient for ``F`` (BRECQ, eq. 10). It holds one number for an element
    of the unit's output, however many images there are, and knows nothing
    of elements whose errors add up or cancel.

    Args:
        likelihood (dict): The teacher's loss.
    """

    def reduce(self, gradients: Tensor) -> Tensor:
        """The mean square."""
        return gradients.square().mean(0, keepdim=True)

    def loss(self, change: dict[int, Tensor], images: slice) -> float:
        """Their squares, weighted."""
        return sum(
            float((self._rows(i) * dz.square()).sum()) / 2
            for i, dz in change.items()
        )
