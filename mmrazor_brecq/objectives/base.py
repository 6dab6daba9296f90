"""Objectives: how far a unit's output is from the float network's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Callable

import torch
from torch import Tensor, nn

from ..activations import CachedBatches
from ..functional import at_least_float32, tensors, weighted_squared_error
from ..graph import Unit
from ..registry import TASK_UTILS
from ..validation import Config


def takes_low_precision(method: Callable) -> Callable:
    """Mark an ``error`` or ``loss`` that takes outputs as layers give them.

    Under autocast they are in bfloat16 or float16, while targets are not.
    To convert them costs a twentieth of an iteration of ResNet-18, and not
    every loss takes two types: :class:`Objective` converts for methods that
    are not marked.
    """
    method.low_precision = True  # type: ignore[attr-defined]
    return method


class Objective:
    """How far a unit's output is from that of the float network.

    A subclass overrides :meth:`error`, and what it needs of the other
    methods.

    Example:
        >>> @TASK_UTILS.register_module()
        ... class Huber(Objective):
        ...     def error(self, unit, i, output, target, index):
        ...         return torch.nn.functional.huber_loss(output, target)
    """

    def watch(
        self,
        teacher: nn.Module,
        units: Sequence[Unit],
        images: CachedBatches,
        generator: torch.Generator,
    ) -> None:
        """Examine the float network before the first unit is reconstructed.

        Args:
            teacher (nn.Module): The float network.
            units (list[Unit]): The units to come.
            images (CachedBatches): Preprocessed inputs, those of this process.
            generator (torch.Generator): Source of randomness.
        """

    def begin(
        self, unit: Unit, outputs: Iterable[Any], targets: Iterable[Any]
    ) -> None:
        """Examine a unit's outputs under nearest rounding before it learns.

        Args:
            unit (Unit): The unit.
            outputs (iterable): Its outputs, batch by batch, each computed
                as it is asked for.
            targets (iterable): The float network's, likewise.
        """

    def end(self, unit: Unit) -> None:
        """Free what was cached for a unit, which is done.

        Args:
            unit (Unit): The unit; it may never have begun.
        """

    def describe(self, unit: Unit) -> str:
        """Return what the error of a unit that has begun is, for reports.

        Args:
            unit (Unit): The unit.
        """
        return type(self).__name__

    def __call__(
        self, unit: Unit, output: Any, target: Any, index: Tensor
    ) -> Tensor:
        """Return :meth:`loss`, in the precision that it takes.

        Args:
            unit (Unit): The unit.
            output (Any): Its output on N images, a structure of tensors, in
                low precision under autocast.
            target (Any): The float network's, of the same form.
            index (Tensor): Indices of the N calibration images.

        Returns:
            Tensor: A scalar.
        """
        return self.loss(unit, _as_taken(self.loss, output), target, index)

    @takes_low_precision
    def loss(
        self, unit: Unit, output: Any, target: Any, index: Tensor
    ) -> Tensor:
        """Return the error to minimize: the sum over the unit's outputs.

        Args:
            unit (Unit): The unit.
            output (Any): As in :meth:`__call__`; in float32 or more unless
                the method is marked by :func:`takes_low_precision`.
            target (Any): The float network's, of the same form.
            index (Tensor): Indices of the N calibration images.

        Returns:
            Tensor: A scalar of 0 or more, 0 where both are the same. Only
            real tensors count that are not empty and have a dimension.
        """
        pairs = zip(tensors(output), tensors(target))
        return sum(
            (
                self.error(unit, i, _as_taken(self.error, out), goal, index)
                for i, (out, goal) in enumerate(pairs)
                if goal.is_floating_point() and goal.dim() and goal.numel()
            ),
            start=torch.zeros((), device=index.device),
        )

    def error(
        self, unit: Unit, i: int, output: Tensor, target: Tensor, index: Tensor
    ) -> Tensor:
        """Return the error of the unit's ``i``-th output tensor.

        Args:
            unit (Unit): The unit.
            i (int): Which of its outputs.
            output (Tensor): N x ..., in float32 or more unless the method
                is marked by :func:`takes_low_precision`.
            target (Tensor): That of the float network, N x ...
            index (Tensor): Indices of the N calibration images.

        Returns:
            Tensor: A scalar of 0 or more, the mean over images: 0 where
            both are the same.
        """
        raise NotImplementedError(
            f'{type(self).__name__} has no `error`: define it, or `loss`'
        )


def _as_taken(method: Callable, output: Any) -> Any:
    """Return a unit's output in the precision that a method takes."""
    return (
        output
        if hasattr(method, 'low_precision')
        else at_least_float32(output)
    )


@TASK_UTILS.register_module()
class MSE(Objective):
    """Squared error: every element of the output counts the same."""

    @takes_low_precision
    def error(
        self, unit: Unit, i: int, output: Tensor, target: Tensor, index: Tensor
    ) -> Tensor:
        """Return :func:`mmrazor_brecq.functional.weighted_squared_error`."""
        return weighted_squared_error(output, target)


#: How a parameter says that it takes an objective.
ObjectiveConfig = Annotated[dict, Config(Objective, TASK_UTILS)]
