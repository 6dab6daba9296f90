"""Objectives: how far a unit's output is from the float network's.

All of them are mean squared errors under some weighting that asks what the
network's task loss makes of an error (BRECQ, Sec. 3.3).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Optional

import torch
from torch import Tensor, nn

from ..functional import weighted_squared_error
from ..graph import Unit
from ..registry import TASK_UTILS
from .likelihoods import teacher_gradients
from .rows import Rows, tensors


@TASK_UTILS.register_module()
class MSE:
    """Every element of the output counts the same."""

    def watch(
        self,
        teacher: nn.Module,
        units: Sequence[Unit],
        batches: Sequence[Tensor],
        generator: torch.Generator,
    ) -> None:
        """See the float network before the first unit is reconstructed.

        Args:
            teacher (nn.Module): The float network.
            units (list[Unit]): The units to come.
            batches (list[Tensor]): Preprocessed inputs.
            generator (torch.Generator): Source of randomness.
        """

    def begin(self, unit: Unit, outputs: Iterable[Any]) -> None:
        """See a unit's outputs under nearest rounding before it learns.

        Args:
            unit (Unit): The unit.
            outputs (iterable): Its outputs, batch by batch, each computed
                as it is asked for.
        """

    def loss(
        self, unit: Unit, output: Any, target: Any, index: Tensor
    ) -> Tensor:
        """The error to make small.

        Args:
            unit (Unit): The unit.
            output (Any): Its output on some images.
            target (Any): The float network's, of the same form.
            index (Tensor): Which calibration images they are.

        Returns:
            Tensor: A scalar.
        """
        pairs = zip(tensors(output), tensors(target))
        return sum(
            (
                self.error(unit, i, out, goal, index)
                for i, (out, goal) in enumerate(pairs)
            ),
            start=torch.zeros((), device=index.device),
        )

    def error(
        self, unit: Unit, i: int, output: Tensor, target: Tensor, index: Tensor
    ) -> Tensor:
        """The error of the unit's ``i``-th output tensor."""
        return weighted_squared_error(output, target)


class _Fisher(MSE):
    """Shared by the objectives that weigh by the teacher's gradient."""

    def __init__(self, likelihood: Optional[dict] = None) -> None:
        self.likelihood = TASK_UTILS.build(
            likelihood or dict(type='Categorical')
        )
        #: By name of the unit and place of the output tensor; those on
        #: which the loss does not depend are missing, and count evenly.
        self.weights: dict[tuple[str, int], Rows] = {}


@TASK_UTILS.register_module()
class FisherDiag(_Fisher):
    """Squared error weighted by the diagonal of the Fisher information.

    The weight is the squared gradient of the teacher's loss at the unit's
    output (BRECQ, eq. 10), normalised to mean 1.

    Args:
        per_sample (bool): Weigh each image by its own gradient, which
            holds one gradient an image; by default all by their mean.
        temper (float): Exponent of the weights before they are
            normalised: 1 is the Fisher itself, 0 plain MSE.
        likelihood (dict): The teacher's loss.
    """

    def __init__(
        self,
        per_sample: bool = False,
        temper: float = 0.5,
        likelihood: Optional[dict] = None,
    ) -> None:
        super().__init__(likelihood)
        self.per_sample = per_sample
        self.temper = temper

    def watch(
        self,
        teacher: nn.Module,
        units: Sequence[Unit],
        batches: Sequence[Tensor],
        generator: torch.Generator,
    ) -> None:
        """Gather the squared gradients of all units in one pass."""
        found: dict[tuple, Any] = {}

        def collect(name: str, i: int, grad: Tensor) -> None:
            if self.per_sample:
                found.setdefault((name, i), []).append(grad.square())
            else:
                mean = grad.square().sum(0, keepdim=True)
                found[name, i] = found.get((name, i), 0) + mean

        teacher_gradients(
            teacher, units, batches, self.likelihood, generator, collect
        )
        images = sum(map(len, batches))
        self.weights = {}
        for place, weight in found.items():
            if self.per_sample:
                weight = torch.cat(weight)
            weight = weight.pow(self.temper)
            mean = weight.mean()
            if mean > 0:
                self.weights[place] = Rows([weight / mean], [images])

    def error(
        self, unit: Unit, i: int, output: Tensor, target: Tensor, index: Tensor
    ) -> Tensor:
        """See :func:`mmrazor_brecq.functional.weighted_squared_error`."""
        weights = self.weights.get((unit.name, i))
        weight = None if weights is None else weights.take(index)
        return weighted_squared_error(output, target, weight)


@TASK_UTILS.register_module()
class FisherFull(_Fisher):
    """The squared change of the teacher's loss to first order.

    ``(g . (z - z*))^2`` for each image's own gradient ``g``: the Fisher
    matrix with all its off-diagonal entries, one sample an image. The
    scale is that of :class:`FisherDiag`.

    Args:
        likelihood (dict): The teacher's loss.
    """

    def watch(
        self,
        teacher: nn.Module,
        units: Sequence[Unit],
        batches: Sequence[Tensor],
        generator: torch.Generator,
    ) -> None:
        """Gather each image's gradient at all units in one pass."""
        found: dict[tuple, list[Tensor]] = {}
        teacher_gradients(
            teacher,
            units,
            batches,
            self.likelihood,
            generator,
            lambda name, i, grad: found.setdefault((name, i), []).append(grad),
        )
        images = sum(map(len, batches))
        self.weights = {}
        for place, grads in found.items():
            grad = torch.cat(grads).reshape(images, -1)
            norm = grad.square().sum(1).mean().sqrt()
            if norm > 0:
                self.weights[place] = Rows([grad / norm], [images])

    def error(
        self, unit: Unit, i: int, output: Tensor, target: Tensor, index: Tensor
    ) -> Tensor:
        """Mean over images of the squared inner product."""
        grads = self.weights.get((unit.name, i))
        if grads is None:
            return weighted_squared_error(output, target)
        grad = grads.take(index)
        change = (output - target).reshape(len(index), -1)
        return (grad * change).sum(1).square().mean()
