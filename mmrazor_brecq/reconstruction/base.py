"""Base class of reconstructors: fit, learn, validate and freeze a unit."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Annotated, Callable, Optional

import torch
from torch import Tensor, nn

from ..functional import Nested, map_tensors
from ..graph import Unit
from ..objectives import Objective
from ..registry import TASK_UTILS
from ..runtime.autocast import Autocast
from ..runtime.distributed import copy_from_first_process, mean_error
from ..validation import Config
from .centering import center
from .network import NetworkRefiner
from .open_parts import open_activations, open_layers, open_quantizers
from .optimize import CannotLearn, NonFinite
from .ranges import fit_scales
from .unit import UnitData, UnitReport


class Reconstructor:
    """Base class of reconstructors, which turn a unit's weights to integers.

    A subclass overrides :meth:`learn`. Without it, weights are rounded to
    nearest.

    Attributes:
        autocast (Autocast): The precision to learn in.
        refiner (NetworkRefiner, optional): The last pass over the whole
            network, after all units.

    Args:
        objective (Objective): The error of a unit's output.
        batch_size (int): Number of images at a time.
        fit_images (int): Number of images that activation scales are chosen
            on.

    Example:
        >>> reconstructor = NearestRounding(batch_size=32)
        >>> reports = list(
        ...     model.reconstruct(teacher, images, seed=0,
        ...                       reconstructor=reconstructor)
        ... )
    """

    autocast = Autocast()
    refiner: Optional[NetworkRefiner] = None

    def __init__(
        self, objective: Objective, batch_size: int, fit_images: int
    ) -> None:
        self.objective = objective
        self.batch_size = batch_size
        self.fit_images = fit_images

    def __call__(
        self, unit: Unit, data: UnitData, generator: torch.Generator
    ) -> UnitReport:
        """Reconstruct one unit and freeze it to integers.

        Args:
            unit (Unit): The unit.
            data (UnitData): Activations around it.
            generator (torch.Generator): Source of randomness, on the CPU.

        Returns:
            UnitReport: Errors before and after, and what was learned.
        """
        report = UnitReport(
            unit.name, list(unit.layers), autocast=self.autocast.chosen
        )
        try:
            self.objective.prepare(unit)
            report.histograms = fit_scales(
                unit,
                data,
                self.fit_images,
                self.batch_size,
                self.objective,
            )
            self.objective.begin(
                unit, self.outputs(unit, data), data.targets.split()
            )
            report.objective = self.objective.describe(unit)
            report.before = report.after = self._center(unit, data, report)
            self.learn(unit, data, generator, report)
        except CannotLearn as error:
            report.note = f'{error}: nearest rounding kept'
        self.objective.end(unit)
        if not report.accepted:
            for quantizer in open_quantizers(unit.module):
                quantizer.forget()
        for quantizer in open_activations(unit.module):
            quantizer.freeze()
        for layer in open_layers(unit.module):
            layer.freeze()
        copy_from_first_process(unit.module.state_dict().values())
        return report

    def _center(self, unit: Unit, data: UnitData, report: UnitReport) -> float:
        """Let biases make up for mean errors, if that helps a unit.

        Returns:
            float: The error of nearest rounding on held-out images.
        """
        plain = self.validate(unit, data)
        if not data.centers:
            return plain
        layers = center(unit, data, self.fit_images, self.batch_size)
        centered = self.validate(unit, data)
        report.centered = centered < plain
        if report.centered:
            return centered
        for layer in layers:
            layer.mean_input = None
        return plain

    def learn(
        self,
        unit: Unit,
        data: UnitData,
        generator: torch.Generator,
        report: UnitReport,
    ) -> None:
        """Learn rounding and scales, and complete the report.

        Args:
            unit (Unit): The unit, with nearest rounding.
            data (UnitData): Activations around it.
            generator (torch.Generator): Source of randomness, on the CPU.
            report (UnitReport): Report with the error of nearest rounding.
                What was learned is kept if ``accepted`` is set to true.

        Raises:
            CannotLearn: If learning has to end; nearest rounding is kept.
        """

    @torch.no_grad()
    def outputs(self, unit: Unit, data: UnitData) -> Iterator[Nested]:
        """Yield the unit's outputs for all images, batch by batch."""
        yield from map(partial(_called, unit.module), data.inputs.split())

    def validate(self, unit: Unit, data: UnitData) -> float:
        """Return the error on held-out images, with rounded weights.

        Args:
            unit (Unit): The unit. It is in evaluation mode afterwards.
            data (UnitData): Activations around it.

        Returns:
            float: The mean over images, 0 or more.

        Raises:
            NonFinite: If the error is NaN or infinite.
            ValueError: If the error is negative, so that the objective is
                wrong.
        """
        unit.module.eval()

        def output(index: Tensor) -> Nested:
            args, kwargs = data.inputs.take(index)
            return unit.module(*args, **kwargs)

        error = self._held_out(unit, data, output)
        if not math.isfinite(error):
            raise NonFinite('NaN or infinity in the output, or in its error')
        if error < 0:
            raise ValueError(
                f'{type(self.objective).__name__} has an error of '
                f'{error:.4g} at {unit.name}, expected 0 or more, and 0 for '
                'equal outputs: add what is missing to its `error` or '
                '`loss`'
            )
        return error

    def energy(self, unit: Unit, data: UnitData) -> float:
        """Return the error of an output of zeros on held-out images."""

        def zeros(index: Tensor) -> Nested:
            return map_tensors(torch.zeros_like, data.targets.take(index))

        return self._held_out(unit, data, zeros)

    @torch.no_grad()
    def _held_out(
        self, unit: Unit, data: UnitData, output: Callable[[Tensor], Nested]
    ) -> float:
        """Return the mean error of some output on held-out images."""
        return mean_error(
            (
                self.objective(
                    unit, output(index), data.targets.take(index), index
                ),
                len(index),
            )
            for index in data.held_out_parts(self.batch_size)
        )


def _called(module: nn.Module, arguments: tuple[tuple, dict]) -> Nested:
    """Return the output of a module for its arguments.

    A generator that kept the arguments in a variable would keep them in
    memory until its next batch.
    """
    args, kwargs = arguments
    return module(*args, **kwargs)


#: Type of a parameter that takes the config of a reconstructor.
ReconstructorConfig = Annotated[dict, Config(Reconstructor, TASK_UTILS)]
