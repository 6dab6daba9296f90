"""Squared errors under the Fisher information of the task (BRECQ, 3.3)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Callable, Optional

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from ..activations import CachedBatches
from ..functional import in_order_of, weighted_squared_error
from ..graph import Unit
from ..registry import TASK_UTILS
from ..runtime.distributed import local_share, sum_over_processes
from ..validation import Count, Exponent
from .base import Objective, takes_low_precision
from .gradients import OutputKey, teacher_gradients
from .likelihood import LikelihoodConfig


class PerImage:
    """What each image says of the elements of one output tensor.

    Args:
        images (CachedBatches): All images; the values are held where they are.
        first (Tensor): The values of the first images.
        count (int): How many images those are.
    """

    def __init__(
        self, images: CachedBatches, first: Tensor, count: int
    ) -> None:
        fold = len(first) // count
        self.column = images.store.allocate(len(images), first, fold)
        self.sum = torch.zeros(2, dtype=torch.float64)
        self.factor = 1.0

    def write(self, start: int, values: Tensor) -> None:
        """Put in the values of the images from ``start`` on."""
        self.column.write(start, values)
        self.sum += torch.tensor([float(values.sum()), values.numel()])

    def mean(self) -> float:
        """Over all elements of all images of all processes."""
        values, count = sum_over_processes(self.sum).tolist()
        return values / max(count, 1)

    def take(self, index: Tensor) -> Tensor:
        """The values of some images, times ``factor``."""
        return self.column.take(index) * self.factor


class Fisher(Objective):
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
        self.weights: dict[OutputKey, Any] = {}

    def describe(self, unit: Unit) -> str:
        """Name the likelihood, or say that there is none."""
        if any(place[0] == unit.name for place in self.weights):
            return f'{type(self).__name__}, {self.likelihood}'
        return 'MSE, the loss has no gradient here'

    def _gradients(
        self,
        teacher: nn.Module,
        units: Sequence[Unit],
        images: CachedBatches,
        generator: torch.Generator,
        collect: Callable[[OutputKey, slice, Tensor], None],
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

    def _weight(
        self, place: OutputKey, index: Tensor, output: Tensor
    ) -> Optional[Tensor]:
        """Return the weights of an output's errors on some images."""
        weight = self.weights.get(place)
        if isinstance(weight, PerImage):
            return weight.take(index)
        if weight is not None:
            # Otherwise each error would reorder a copy of them.
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
        images: CachedBatches,
        generator: torch.Generator,
    ) -> None:
        """Gather the squared gradients of all units in one pass."""
        found: dict[OutputKey, Any] = {}

        def collect(place: OutputKey, which: slice, grad: Tensor) -> None:
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

        count = None if self.per_sample else local_share(self.images)
        self._gradients(teacher, units, images, generator, collect, count)
        self.weights = {}
        for place, weight in found.items():
            if not self.per_sample:
                weight = sum_over_processes(weight).pow(self.temper)
            mean = weight.mean()
            if mean > 0:
                if self.per_sample:
                    weight.factor = 1 / mean
                else:
                    weight = weight / mean
                self.weights[place] = weight

    @takes_low_precision
    def error(
        self, unit: Unit, i: int, output: Tensor, target: Tensor, index: Tensor
    ) -> Tensor:
        """See :func:`mmrazor_brecq.functional.weighted_squared_error`."""
        weight = self._weight((unit.name, i), index, output)
        return weighted_squared_error(output, target, weight)
