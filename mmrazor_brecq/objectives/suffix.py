"""Errors that a unit makes before the network's last layer (GLF-Q)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Optional

import torch
from torch import Tensor, nn

from ..activations import CachedBatches
from ..functional import Nested, tensors, weighted_squared_error
from ..graph import Unit
from ..registry import TASK_UTILS
from ..runtime.distributed import local_share, sum_over_processes
from ..validation import Amount, Count, Exponent
from .base import takes_low_precision
from .fisher import FisherDiag
from .likelihood import LikelihoodConfig
from .rest import RestOfNetwork


@TASK_UTILS.register_module()
class SuffixLoss(FisherDiag):
    """Error that a unit's output makes at the network's penultimate features.

    The unit's output goes through the rest of the float network, up to the
    input of its last layer, and counts by the squared error there; beside
    it, by the weighted squared error of :class:`FisherDiag` at the unit
    itself (GLF-Q, 2026)::

        error = features / features_0 + local_weight * local / local_0

    Errors with the index 0 are those of nearest rounding, so that a unit of
    any size has the same balance. Where the rest of the network has no such
    layer, as behind the last unit, the divergence of the network's outputs
    takes the place of the features.

    Every batch goes forward and back through the rest of the network, which
    takes time and memory: about twice as long as the error at the unit alone
    on ResNet-18. What comes before the unit does not run if nothing behind
    the unit reads it; in a U-Net or a pyramid it does. Parameters of the
    float network get no gradient.

    Args:
        local_weight (float): Weight of the error at the unit itself.
        temper (float): As in :class:`FisherDiag`: 0 is the plain squared
            error.
        images (int): Number of images for the Fisher information and for the
            errors of nearest rounding.
        likelihood (dict, optional): What the network's outputs mean, as in
            :class:`FisherDiag`.

    Raises:
        ValueError: If a number is negative or not finite, or ``images`` is
            below 1.

    Example:
        >>> reconstructor = dict(
        ...     type='BlockReconstructor',
        ...     objective=dict(type='SuffixLoss', local_weight=2.0),
        ... )
    """

    def __init__(
        self,
        local_weight: Amount = 2.0,
        temper: Exponent = 0.5,
        images: Count = 256,
        likelihood: Optional[LikelihoodConfig] = None,
    ) -> None:
        super().__init__(temper=temper, images=images, likelihood=likelihood)
        self.local_weight = local_weight
        #: What a unit's errors behind it, and at itself, are multiplied by.
        self.factors: dict[str, tuple[float, float]] = {}

    def watch(
        self,
        teacher: nn.Module,
        units: Sequence[Unit],
        images: CachedBatches,
        generator: torch.Generator,
    ) -> None:
        """Compute the local weights, and look at what is behind the units."""
        super().watch(teacher, units, images, generator)
        self.factors = {}
        self.sizes = images.sizes
        reached = [unit for unit in units if self._reaches(unit)]
        self.rest = RestOfNetwork(teacher, reached, images)

    def _reaches(self, unit: Unit) -> bool:
        """Return whether a gradient of the network's outputs comes back."""
        return any(name == unit.name for name, _ in self.weights)

    def describe(self, unit: Unit) -> str:
        """Return where errors are compared, or why at the unit alone."""
        if unit.name not in self.factors:
            return super().describe(unit)
        if self.rest.compares_outputs(unit.name):
            return f'{type(self).__name__} at the outputs, {self.likelihood}'
        return f'{type(self).__name__} before the last layer'

    def begin(
        self,
        unit: Unit,
        outputs: Iterable[Nested],
        targets: Iterable[Nested],
    ) -> None:
        """Measure the errors of nearest rounding."""
        if not self._reaches(unit):
            return
        self.rest.prepare(unit.name)
        sums, start = torch.zeros(3, dtype=torch.float64), 0
        targets = iter(targets)
        for size, output in zip(self.sizes, outputs):
            index = torch.arange(start, start + size)
            with torch.no_grad():
                behind = self._behind(unit, output, index)
                local = super().loss(unit, output, next(targets), index)
            sums += size * torch.tensor([float(behind), float(local), 1.0])
            start += size
            if start >= local_share(self.images):
                break
        behind, local, count = sum_over_processes(sums).tolist()
        self.factors[unit.name] = (
            count / behind if behind > 0 else 1.0,
            self.local_weight * (count / local if local > 0 else 1.0),
        )

    def end(self, unit: Unit) -> None:
        """Forget the errors of nearest rounding."""
        self.factors.pop(unit.name, None)

    def finish(self) -> None:
        """Free the float network, its features and the local weights."""
        super().finish()
        del self.rest

    @takes_low_precision
    def loss(
        self, unit: Unit, output: Nested, target: Nested, index: Tensor
    ) -> Tensor:
        """Return the error behind the unit and at the unit itself."""
        local = super().loss(unit, output, target, index)
        if unit.name not in self.factors:  # Its scales are chosen.
            return local
        behind_factor, local_factor = self.factors[unit.name]
        behind = self._behind(unit, output, index)
        return behind_factor * behind + local_factor * local

    def _behind(self, unit: Unit, output: Nested, index: Tensor) -> Tensor:
        """Return the error that a unit's output makes behind it, a scalar.

        It is computed in the precision that the output has.
        """
        first = tensors(output)[0]
        with torch.autocast(
            first.device.type, first.dtype, first.itemsize == 2
        ):
            found, goals = self.rest(unit.name, output, index)
        if self.rest.compares_outputs(unit.name):
            found = [x.float() if x.itemsize == 2 else x for x in found]
            return self.likelihood.divergence(found, goals).clamp(min=0)
        errors = [
            weighted_squared_error(x, goal)
            for x, goal in zip(found, goals)
            if x.shape == goal.shape  # The network may choose its regions.
        ]
        return sum(errors, start=torch.zeros((), device=first.device))
