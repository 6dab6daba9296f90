"""The weighting of the authors' published code."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..activations import CachedBatches
from ..functional import flatten, tensors, weighted_squared_error
from ..graph import Unit, run_float
from ..registry import TASK_UTILS
from .base import Objective, takes_low_precision
from .gradients import real_outputs


@TASK_UTILS.register_module()
class OfficialFisher(Objective):
    """The weighting of the authors' published code, for comparison.

    Its weight is ``(|g| + 1)^2``, each image's gradient of the divergence
    between the float network's logits and those with the network quantized
    up to and with this unit. That divergence is nearly flat, so this is
    close to plain MSE. It runs the rest of the float network once a unit:
    its cost grows with the square of the depth.
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
        self, unit: Unit, outputs: Iterable[Any], targets: Iterable[Any]
    ) -> None:
        """Find this unit's weights."""
        self.weights = CachedBatches(
            self._weights(unit, outputs), self.images.sizes, self.images.store
        )

    def _weights(
        self, unit: Unit, outputs: Iterable[Any]
    ) -> Iterator[list[Tensor]]:
        module = self.teacher.get_submodule(unit.name)
        for batch, output in zip(self.images.split(), outputs):
            flat, rebuild = flatten(output)
            leaves = [
                x.detach().requires_grad_(x.is_floating_point())
                if isinstance(x, Tensor)
                else x
                for x in flat
            ]
            with torch.no_grad():
                goal = _logits(self.teacher, batch).softmax(-1)
            hook = module.register_forward_hook(
                partial(_replace, leaves, rebuild)
            )
            try:
                with torch.enable_grad():
                    logits = _logits(self.teacher, batch)
                    error = F.kl_div(
                        logits.log_softmax(-1), goal, reduction='batchmean'
                    )
                    if error.requires_grad:
                        error.backward()
            finally:
                hook.remove()
            yield [
                torch.ones_like(x)
                if x.grad is None
                else (x.grad.abs() + 1).square()
                for x in tensors(leaves)
            ]

    @takes_low_precision
    def error(
        self, unit: Unit, i: int, output: Tensor, target: Tensor, index: Tensor
    ) -> Tensor:
        """Squared error under the weights of this unit."""
        return weighted_squared_error(
            output, target, self.weights.take(index)[i]
        )


def _logits(network: nn.Module, images: Tensor) -> Tensor:
    """The first real output, its classes last; zeros if there is none."""
    outputs = real_outputs(run_float(network, images))
    if not outputs:
        return images.new_zeros(len(images), 1)
    return outputs[0].movedim(1, -1) if outputs[0].dim() > 3 else outputs[0]


def _replace(
    leaves: list[Any], rebuild: Any, module: nn.Module, args: Any, old: Any
) -> Any:
    # Copies, since what follows may write to them.
    return rebuild([x.clone() if isinstance(x, Tensor) else x for x in leaves])
