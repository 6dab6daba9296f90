"""Squared errors weighted by the Fisher information (BRECQ, section 3.3)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Callable, Optional

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from ..activations import CachedBatches
from ..functional import Nested, in_order_of, weighted_squared_error
from ..graph import Unit
from ..registry import TASK_UTILS
from ..runtime.distributed import local_share, sum_over_processes
from ..validation import Count, Exponent
from .base import Objective, takes_low_precision
from .gradients import OutputKey, teacher_gradients
from .likelihood import Likelihood, LikelihoodConfig


class PerImage:
    """Weights of one output tensor that differ from image to image.

    Args:
        images (CachedBatches): All images. The weights are cached in the
            same store.
        first (Tensor): The weights of the first images.
        count (int): How many images ``first`` belongs to.
    """

    def __init__(
        self, images: CachedBatches, first: Tensor, count: int
    ) -> None:
        fold = len(first) // count
        self.cached = images.store.allocate(len(images), first, fold)
        self.sum = torch.zeros(2, dtype=torch.float64)
        self.factor = 1.0

    def write(self, start: int, values: Tensor) -> None:
        """Store the weights of the images from index ``start`` on."""
        self.cached.write(start, values)
        self.sum += torch.tensor([float(values.sum()), values.numel()])

    def mean(self) -> float:
        """Return the mean over all elements, images and processes."""
        values, count = sum_over_processes(self.sum).tolist()
        return values / max(count, 1)

    def take(self, index: Tensor) -> Tensor:
        """Return the weights of some images, multiplied by ``factor``."""
        return self.cached.take(index) * self.factor


class Fisher(Objective):
    """Base class of objectives weighted by gradients of the float network.

    Args:
        likelihood (dict, optional): The loss that is differentiated. By
            default it is chosen by the form of the network's outputs
            (:class:`FromOutput`).
    """

    def __init__(self, likelihood: Optional[LikelihoodConfig] = None) -> None:
        self.likelihood: Likelihood = TASK_UTILS.build(
            likelihood or dict(type='FromOutput')
        )
        #: Weights of each output tensor: a tensor for all images, or
        #: :class:`PerImage`. An output that the loss does not depend on has
        #: no entry, and its elements count the same.
        self.weights: dict[OutputKey, Any] = {}

    def describe(self, unit: Unit) -> str:
        """Return the objective and its likelihood, or why it is plain MSE."""
        if any(name == unit.name for name, _ in self.weights):
            return f'{type(self).__name__}, {self.likelihood}'
        return 'MSE, the loss has no gradient here'

    def finish(self) -> None:
        """Free the weights."""
        self.weights = {}

    def rough_error(
        self, unit: Unit, output: Nested, target: Nested, index: Tensor
    ) -> Tensor:
        """Return the error under the weights of the float network."""
        return self(unit, output, target, index)

    def _gradients(
        self,
        teacher: nn.Module,
        units: Sequence[Unit],
        images: CachedBatches,
        generator: torch.Generator,
        collect: Callable[[OutputKey, slice, Tensor], None],
        count: Optional[int] = None,
    ) -> None:
        """Collect gradients, and warn about units that none reaches.

        The arguments are those of :func:`teacher_gradients`.
        """
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
                '`torch.no_grad`, detach a tensor, or return no tensor of '
                'real numbers',
                'current',
                logging.WARNING,
            )

    def _weight(
        self, key: OutputKey, index: Tensor, output: Tensor
    ) -> Optional[Tensor]:
        """Return the weights of an output tensor for some images."""
        weight = self.weights.get(key)
        if isinstance(weight, PerImage):
            return weight.take(index)
        if weight is not None:
            # It is reordered once here, or else for each error.
            weight = self.weights[key] = in_order_of(weight, output)
        return weight


@TASK_UTILS.register_module()
class FisherDiag(Fisher):
    """Squared error weighted by the diagonal of the Fisher information.

    The weight of an element is the mean squared gradient of the float
    network's loss with respect to it (BRECQ, eq. 10), raised to the power
    ``temper`` and divided by the mean of all weights of its tensor.

    Args:
        per_sample (bool): If true, weigh each image by its own gradient,
            which is cached. By default all images have the same weights.
        temper (float): Exponent of the weights, 0 to 10: 1 is the Fisher
            information itself, 0 is plain MSE.
        images (int): Number of images for the mean of the squared gradients.
            ``per_sample`` uses all images.
        likelihood (dict): The loss that is differentiated; by default
            :class:`FromOutput` chooses it.

    Raises:
        ValueError: If ``images`` is below 1, or ``temper`` is negative or
            not finite.

    Example:
        >>> reconstructor = dict(
        ...     type='BlockReconstructor',
        ...     objective=dict(type='FisherDiag', temper=0.5, images=256),
        ... )
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
        """Compute the weights of all units in one pass over the images."""
        args = teacher, units, images, generator
        self.weights = {}
        if self.per_sample:
            self._weigh_each(*args)
        else:
            self._weigh_all(*args)

    def _weigh_all(
        self,
        teacher: nn.Module,
        units: Sequence[Unit],
        images: CachedBatches,
        generator: torch.Generator,
    ) -> None:
        """Compute weights from the mean over images."""
        sums: dict[OutputKey, Tensor] = {}

        def collect(key: OutputKey, which: slice, grad: Tensor) -> None:
            squares = grad.square().sum(0, keepdim=True)
            sums[key] = sums.get(key, 0) + squares

        count = local_share(self.images)
        self._gradients(teacher, units, images, generator, collect, count)
        for key, squares in sums.items():
            weight = sum_over_processes(squares).pow(self.temper)
            mean = weight.mean()
            if mean > 0:
                self.weights[key] = weight / mean

    def _weigh_each(
        self,
        teacher: nn.Module,
        units: Sequence[Unit],
        images: CachedBatches,
        generator: torch.Generator,
    ) -> None:
        """Compute weights that each image has for itself."""
        found: dict[OutputKey, PerImage] = {}

        def collect(key: OutputKey, which: slice, grad: Tensor) -> None:
            weight = grad.square().pow(self.temper)
            count = which.stop - which.start
            if len(weight) % count:  # Its rows belong to no single image.
                return
            if key not in found:
                found[key] = PerImage(images, weight, count)
            found[key].write(which.start, weight)

        self._gradients(teacher, units, images, generator, collect)
        for key, weights in found.items():
            mean = weights.mean()
            if mean > 0:
                weights.factor = 1 / mean
                self.weights[key] = weights

    @takes_low_precision
    def error(
        self, unit: Unit, i: int, output: Tensor, target: Tensor, index: Tensor
    ) -> Tensor:
        """Return the weighted squared error of one output tensor."""
        weight = self._weight((unit.name, i), index, output)
        return weighted_squared_error(output, target, weight)
