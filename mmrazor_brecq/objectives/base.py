"""Base class of objectives, and the plain squared error."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Callable, TypeVar

import torch
from torch import Tensor, nn

from ..activations import CachedBatches
from ..functional import (
    Nested,
    at_least_float32,
    tensors,
    weighted_squared_error,
)
from ..graph import Unit
from ..registry import TASK_UTILS
from ..validation import Config

Method = TypeVar('Method', bound=Callable[..., Tensor])


def takes_low_precision(method: Method) -> Method:
    """Mark an ``error`` or ``loss`` that accepts outputs in low precision.

    Under autocast, outputs are in bfloat16 or float16 while targets are in
    float32. Not every loss accepts two types, so :class:`Objective` converts
    outputs for methods without this mark. The conversion costs 5 % of an
    iteration of ResNet-18.

    Args:
        method (callable): The ``error`` or ``loss`` of an objective.

    Returns:
        callable: The same method.
    """
    method.low_precision = True  # type: ignore[attr-defined]
    return method


class Objective:
    """Error of a unit's output, compared with that of the float network.

    A subclass overrides :meth:`error`, and any other method that it needs.

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
            units (list[Unit]): The units that will be reconstructed.
            images (CachedBatches): Preprocessed images of this process.
            generator (torch.Generator): Source of randomness, on the CPU.
        """

    def prepare(self, unit: Unit) -> None:
        """Examine a unit before its scales are chosen.

        Args:
            unit (Unit): The unit, whose quantizers do nothing yet.
        """

    def rough_error(
        self, unit: Unit, output: Nested, target: Nested, index: Tensor
    ) -> Tensor:
        """Return an error to choose scales by, before :meth:`begin`.

        The arguments are those of :meth:`__call__`. By default it is the
        plain squared error.
        """
        return MSE()(unit, output, target, index)

    def begin(
        self,
        unit: Unit,
        outputs: Iterable[Nested],
        targets: Iterable[Nested],
    ) -> None:
        """Examine the outputs of a unit with nearest rounding.

        Args:
            unit (Unit): The unit, before it learns.
            outputs (iterable): Its outputs, batch by batch. Each is computed
                when it is asked for.
            targets (iterable): Those of the float network, batch by batch.
        """

    def end(self, unit: Unit) -> None:
        """Free what was cached for a unit that is finished.

        Args:
            unit (Unit): The unit. :meth:`begin` may not have been called
                for it.
        """

    def finish(self) -> None:
        """Free what :meth:`watch` kept, once all units are finished."""

    def describe(self, unit: Unit) -> str:
        """Return the name of the error of a unit, for reports.

        Args:
            unit (Unit): A unit for which :meth:`begin` was called.
        """
        return type(self).__name__

    def __call__(
        self, unit: Unit, output: Nested, target: Nested, index: Tensor
    ) -> Tensor:
        """Return :meth:`loss`, computed in the precision that it accepts.

        Args:
            unit (Unit): The unit.
            output (Any): Its output for N images, tensors in any structure,
                in low precision under autocast.
            target (Any): The output of the float network, in the same
                structure.
            index (Tensor): Indices of the N calibration images.

        Returns:
            Tensor: A scalar.
        """
        output = _in_accepted_precision(self.loss, output)
        return self.loss(unit, output, target, index)

    @takes_low_precision
    def loss(
        self, unit: Unit, output: Nested, target: Nested, index: Tensor
    ) -> Tensor:
        """Return the error to minimize: the sum over the unit's outputs.

        Args:
            unit (Unit): The unit.
            output (Any): As in :meth:`__call__`. It is in float32 or float64
                unless the method is marked with :func:`takes_low_precision`.
            target (Any): The output of the float network, in the same
                structure.
            index (Tensor): Indices of the N calibration images.

        Returns:
            Tensor: A scalar of 0 or more, and 0 if output and target are
            equal. Tensors of integers, empty tensors and scalars do not
            count.
        """
        pairs = zip(tensors(output), tensors(target))
        return sum(
            (
                self.error(
                    unit,
                    i,
                    _in_accepted_precision(self.error, out),
                    goal,
                    index,
                )
                for i, (out, goal) in enumerate(pairs)
                if goal.is_floating_point() and goal.dim() and goal.numel()
            ),
            start=torch.zeros((), device=index.device),
        )

    def error(
        self, unit: Unit, i: int, output: Tensor, target: Tensor, index: Tensor
    ) -> Tensor:
        """Return the error of one output tensor of the unit.

        Args:
            unit (Unit): The unit.
            i (int): Position of the tensor among the unit's outputs.
            output (Tensor): The tensor, N x ... It is in float32 or float64
                unless the method is marked with :func:`takes_low_precision`.
            target (Tensor): The same tensor of the float network, N x ...
            index (Tensor): Indices of the N calibration images.

        Returns:
            Tensor: A scalar of 0 or more, the mean over the images, and 0 if
            output and target are equal.
        """
        raise NotImplementedError(
            f'{type(self).__name__} has no `error`: define it, or `loss`'
        )


def _in_accepted_precision(method: Callable, output: Nested) -> Nested:
    """Return a unit's output in the precision that a method accepts."""
    return (
        output
        if hasattr(method, 'low_precision')
        else at_least_float32(output)
    )


@TASK_UTILS.register_module()
class MSE(Objective):
    """Mean squared error: every element of the output counts the same.

    Example:
        >>> reconstructor = dict(
        ...     type='BlockReconstructor', objective=dict(type='MSE')
        ... )
    """

    @takes_low_precision
    def error(
        self, unit: Unit, i: int, output: Tensor, target: Tensor, index: Tensor
    ) -> Tensor:
        """Return the mean squared error of one output tensor."""
        return weighted_squared_error(output, target)


#: Type of a parameter that takes the config of an objective.
ObjectiveConfig = Annotated[dict, Config(Objective, TASK_UTILS)]
