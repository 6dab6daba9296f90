"""The weights of the authors' published code."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..activations import CachedBatches
from ..functional import (
    Nested,
    map_tensors,
    tensors,
    weighted_squared_error,
)
from ..graph import Inputs, Unit, images_of, run_float
from ..registry import TASK_UTILS
from .base import Objective, takes_low_precision
from .gradients import real_outputs
from .stand_in import first_calls_return


@TASK_UTILS.register_module()
class OfficialFisher(Objective):
    """Squared error with the weights of the authors' code, for comparison.

    The weight of an element is ``(|g| + 1)^2``. Here ``g`` is the gradient
    of the divergence between the logits of the float network and those of
    the network that is quantized up to this unit, for each image. That
    divergence is close to its minimum, so ``g`` is close to zero and the
    objective close to plain MSE. The float network runs once for each unit,
    so the time grows with the square of the depth.
    """

    def watch(
        self,
        teacher: nn.Module,
        units: Sequence[Unit],
        images: CachedBatches,
        generator: torch.Generator,
    ) -> None:
        """Keep the float network and the images."""
        self.teacher = teacher
        self.images = images

    def begin(
        self,
        unit: Unit,
        outputs: Iterable[Nested],
        targets: Iterable[Nested],
    ) -> None:
        """Compute the weights of this unit."""
        self.weights = CachedBatches(
            self._weights(unit, outputs), self.images.sizes, self.images.store
        )

    def _weights(
        self, unit: Unit, outputs: Iterable[Nested]
    ) -> Iterator[list[Tensor]]:
        """Yield the weights of the unit's output tensors, batch by batch."""
        module = self.teacher.get_submodule(unit.name)
        for images, output in zip(self.images.split(), outputs):
            yield [
                torch.ones_like(x)
                if x.grad is None
                else (x.grad.abs() + 1).square()
                for x in self._with_gradients(module, images, output)
            ]

    def _with_gradients(
        self, module: nn.Module, images: Inputs, output: Nested
    ) -> list[Tensor]:
        """Return copies of a unit's output tensors that have gradients.

        Args:
            module (nn.Module): The unit in the float network.
            images (Tensor | Samples): Preprocessed images.
            output (Any): Nested of the quantized unit for them.
        """
        watched = map_tensors(
            lambda x: x.detach().requires_grad_(x.is_floating_point()), output
        )
        with torch.no_grad():
            goal = _logits(self.teacher, images).softmax(-1)
        with torch.enable_grad(), first_calls_return({module: watched}):
            logits = _logits(self.teacher, images)
            error = F.kl_div(
                logits.log_softmax(-1), goal, reduction='batchmean'
            )
            if error.requires_grad:
                error.backward()
        return tensors(watched)

    def finish(self) -> None:
        """Free network, images and weights."""
        del self.teacher, self.images
        self.__dict__.pop('weights', None)  # No unit may have begun.

    @takes_low_precision
    def error(
        self, unit: Unit, i: int, output: Tensor, target: Tensor, index: Tensor
    ) -> Tensor:
        """Return the weighted squared error of one output tensor."""
        return weighted_squared_error(
            output, target, self.weights.take(index)[i]
        )


def _logits(network: nn.Module, images: Inputs) -> Tensor:
    """Return the first real output, its classes last; zeros without one."""
    outputs = real_outputs(run_float(network, images))
    if not outputs:
        return images_of(images).new_zeros(len(images), 1)
    return outputs[0].movedim(1, -1) if outputs[0].dim() > 3 else outputs[0]
