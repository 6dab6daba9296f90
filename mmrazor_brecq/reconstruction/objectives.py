"""Objectives: how far a unit's output is from the float network's.

All of them are mean squared errors under some weighting that asks what the
network's task loss makes of an error (BRECQ, Sec. 3.3).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Callable, Optional

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from ..functional import in_order_of, tensors, weighted_squared_error
from ..graph import Unit
from ..registry import TASK_UTILS
from ..validation import Config, Count, Exponent
from .autocast import as_taken, takes_short
from .gradients import Place, teacher_gradients
from .likelihoods import LikelihoodConfig
from .processes import share, total
from .rows import Rows


@TASK_UTILS.register_module()
class MSE:
    """Every element of the output counts the same."""

    def watch(
        self,
        teacher: nn.Module,
        units: Sequence[Unit],
        images: Rows,
        generator: torch.Generator,
    ) -> None:
        """See the float network before the first unit is reconstructed.

        Args:
            teacher (nn.Module): The float network.
            units (list[Unit]): The units to come.
            images (Rows): Preprocessed inputs, the share of this process.
            generator (torch.Generator): Source of randomness.
        """

    def begin(
        self, unit: Unit, outputs: Iterable[Any], targets: Iterable[Any]
    ) -> None:
        """See a unit's outputs under nearest rounding before it learns.

        Args:
            unit (Unit): The unit.
            outputs (iterable): Its outputs, batch by batch, each computed
                as it is asked for.
            targets (iterable): The float network's, likewise.
        """

    def end(self, unit: Unit) -> None:
        """Let go of what was held for a unit, which is done.

        Args:
            unit (Unit): The unit; it may never have begun.
        """

    def describe(self, unit: Unit) -> str:
        """Return what the error of a unit that has begun is, for reports.

        Args:
            unit (Unit): The unit.
        """
        return type(self).__name__

    @takes_short
    def loss(
        self, unit: Unit, output: Any, target: Any, index: Tensor
    ) -> Tensor:
        """The error to make small.

        Args:
            unit (Unit): The unit.
            output (Any): Its output on some images. A method of one's own
                sees it in the target's type, but with
                :func:`takes_short`.
            target (Any): The float network's, of the same form.
            index (Tensor): Which calibration images they are.

        Returns:
            Tensor: A scalar, 0 where both are the same and never less. Only
            real tensors count that are not empty and of some size.
        """
        pairs = zip(tensors(output), tensors(target))
        return sum(
            (
                self.error(unit, i, as_taken(self.error, out), goal, index)
                for i, (out, goal) in enumerate(pairs)
                if goal.is_floating_point() and goal.dim() and goal.numel()
            ),
            start=torch.zeros((), device=index.device),
        )

    @takes_short
    def error(
        self, unit: Unit, i: int, output: Tensor, target: Tensor, index: Tensor
    ) -> Tensor:
        """The error of the unit's ``i``-th output tensor.

        What an objective of one's own overrides.

        Args:
            unit (Unit): The unit.
            i (int): Which of its outputs.
            output (Tensor): N x ..., in four bytes or more unless the method
                is marked by :func:`takes_short`.
            target (Tensor): That of the float network, N x ...
            index (Tensor): The numbers of the N images.

        Returns:
            Tensor: A scalar, the mean over images: 0 where both are the
            same, and never below.
        """
        return weighted_squared_error(output, target)


#: How a parameter says that it takes an objective.
ObjectiveConfig = Annotated[dict, Config(MSE, TASK_UTILS)]


class PerImage:
    """What each image says of the elements of one output tensor.

    Args:
        images (Rows): All images; the values are held where they are.
        first (Tensor): The values of the first images.
        count (int): How many images those are.
    """

    def __init__(self, images: Rows, first: Tensor, count: int) -> None:
        fold = len(first) // count
        self.column = images.store.column(len(images), first, fold)
        self.sum = torch.zeros(2, dtype=torch.float64)
        self.factor = 1.0

    def write(self, start: int, values: Tensor) -> None:
        """Put in the values of the images from ``start`` on."""
        self.column.write(start, values)
        self.sum += torch.tensor([float(values.sum()), values.numel()])

    def mean(self) -> float:
        """Over all elements of all images of all processes."""
        values, count = total(self.sum).tolist()
        return values / max(count, 1)

    def take(self, index: Tensor) -> Tensor:
        """The values of some images, times ``factor``."""
        return self.column.take(index) * self.factor


class Fisher(MSE):
    """Shared by the objectives that weigh by the teacher's gradient.

    Args:
        likelihood (dict, optional): The teacher's loss; by default the form
            of its outputs tells.
    """

    def __init__(self, likelihood: Optional[LikelihoodConfig] = None) -> None:
        self.likelihood = TASK_UTILS.build(
            likelihood or dict(type='FromOutput')
        )
        #: By name of the unit and place of the output tensor: one tensor
        #: for all images, or one of each. Those on which the loss does not
        #: depend are missing, and count evenly.
        self.weights: dict[Place, Any] = {}

    def describe(self, unit: Unit) -> str:
        """Name the likelihood, or say that there is none."""
        if any(place[0] == unit.name for place in self.weights):
            return f'{type(self).__name__}, {self.likelihood}'
        return 'MSE, the loss has no gradient here'

    def _gradients(
        self,
        teacher: nn.Module,
        units: Sequence[Unit],
        images: Rows,
        generator: torch.Generator,
        collect: Callable[[Place, slice, Tensor], None],
        count: Optional[int] = None,
    ) -> None:
        """Those of the teacher's loss; says so where there are none."""
        reached = teacher_gradients(
            teacher, units, images, self.likelihood, generator, collect, count
        )
        rest = [unit.name for unit in units if unit.name not in reached]
        if rest:
            where = ', '.join(rest) if reached else 'any unit'
            print_log(
                f"No gradient of the network's outputs reaches {where}: the "
                'objective there is plain MSE, not '
                f'{type(self).__name__}. The forward pass may run under '
                '`torch.no_grad`, detach a tensor, or give no real numbers',
                'current',
                logging.WARNING,
            )

    def _weight(self, place: Place, index: Tensor, output: Tensor) -> Any:
        """What weighs the ``i``-th output of a unit on some images."""
        weight = self.weights.get(place)
        if isinstance(weight, PerImage):
            return weight.take(index)
        if weight is not None:
            # Else each error would reorder it anew, and hold it twice.
            weight = self.weights[place] = in_order_of(weight, output)
        return weight


@TASK_UTILS.register_module()
class FisherDiag(Fisher):
    """Squared error weighted by the diagonal of the Fisher information.

    The weight is the squared gradient of the teacher's loss at the unit's
    output (BRECQ, eq. 10) to the power of ``temper``, by default its root,
    normalised to mean 1.

    Args:
        per_sample (bool): Weigh each image by its own gradient, which
            holds one gradient an image; by default all by their mean.
        temper (float): Exponent of the weights before they are
            normalised: 1 is the Fisher itself, 0 plain MSE.
        images (int): Images that the mean is taken over; with
            ``per_sample`` all are needed.
        likelihood (dict): The teacher's loss.
    """

    def __init__(
        self,
        per_sample: bool = False,
        temper: Exponent = 0.5,
        images: Count = 256,
        likelihood: Optional[LikelihoodConfig] = None,
    ) -> None:
        super().__init__(likelihood)
        self.images = images
        self.per_sample = per_sample
        self.temper = temper

    def watch(
        self,
        teacher: nn.Module,
        units: Sequence[Unit],
        images: Rows,
        generator: torch.Generator,
    ) -> None:
        """Gather the squared gradients of all units in one pass."""
        found: dict[Place, Any] = {}

        def collect(place: Place, which: slice, grad: Tensor) -> None:
            weight = grad.square()
            if self.per_sample:
                weight = weight.pow(self.temper)
                count = which.stop - which.start
                if len(weight) % count:  # of no image: counts evenly
                    return
                if place not in found:
                    found[place] = PerImage(images, weight, count)
                found[place].write(which.start, weight)
            else:
                mean = weight.sum(0, keepdim=True)
                found[place] = found.get(place, 0) + mean

        count = None if self.per_sample else share(self.images)
        self._gradients(teacher, units, images, generator, collect, count)
        self.weights = {}
        for place, weight in found.items():
            if not self.per_sample:
                weight = total(weight).pow(self.temper)
            mean = weight.mean()
            if mean > 0:
                if self.per_sample:
                    weight.factor = 1 / mean
                else:
                    weight = weight / mean
                self.weights[place] = weight

    @takes_short
    def error(
        self, unit: Unit, i: int, output: Tensor, target: Tensor, index: Tensor
    ) -> Tensor:
        """See :func:`mmrazor_brecq.functional.weighted_squared_error`."""
        weight = self._weight((unit.name, i), index, output)
        return weighted_squared_error(output, target, weight)


@TASK_UTILS.register_module()
class FisherFull(Fisher):
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
        images: Rows,
        generator: torch.Generator,
    ) -> None:
        """Gather each image's gradient at all units in one pass."""
        found: dict[Place, PerImage] = {}
        norms: dict[Place, Tensor] = {}

        def collect(place: Place, which: slice, grad: Tensor) -> None:
            count = which.stop - which.start
            if len(grad) % count:  # of no image: counts evenly
                return
            grad = grad.reshape(count, -1)
            if place not in found:
                found[place] = PerImage(images, grad, len(grad))
            found[place].write(which.start, grad)
            squared = grad.square().sum()
            norms[place] = norms.get(place, 0) + squared

        self._gradients(teacher, units, images, generator, collect)
        count = float(total(torch.tensor(float(len(images)))))
        self.weights = {}
        for place, grads in found.items():
            norm = float(total(norms[place]) / count) ** 0.5
            if norm > 0:
                grads.factor = 1 / norm
                self.weights[place] = grads

    @takes_short
    def error(
        self, unit: Unit, i: int, output: Tensor, target: Tensor, index: Tensor
    ) -> Tensor:
        """Mean over images of the squared inner product."""
        grad = self._weight((unit.name, i), index, output)
        if grad is None:
            return weighted_squared_error(output, target)
        change = (output - target).reshape(len(index), -1)
        return (grad * change).sum(1).square().mean()
