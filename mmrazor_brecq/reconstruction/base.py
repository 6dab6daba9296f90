"""What all reconstructors do with a unit: fit, learn, validate, freeze."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Annotated, Any, Callable, Optional

import torch
from torch import Tensor, nn

from ..functional import map_tensors
from ..graph import Unit
from ..objectives import Objective
from ..registry import TASK_UTILS
from ..runtime.autocast import Autocast
from ..runtime.distributed import copy_from_first_process, mean_error
from ..validation import Config
from .network import NetworkRefiner
from .open_parts import open_activations, open_layers, open_quantizers
from .optimize import CannotLearn, NonFinite
from .ranges import fit_scales
from .unit import UnitData, UnitReport


class Reconstructor:
    """Makes the layers of one unit integers; a subclass says how they learn.

    Attributes:
        autocast (Autocast): The precision to learn in.
        refiner (NetworkRefiner, optional): What refines the network once
            all units are done.

    Args:
        objective (Objective): Measures the error of a unit's output.
        batch_size (int): Images at a time.
        fit_images (int): Images that activation scales are chosen on.
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
            generator (torch.Generator): Source of all randomness.

        Returns:
            UnitReport: How it went.
        """
        report = UnitReport(
            unit.name, list(unit.layers), autocast=self.autocast.chosen
        )
        try:
            fit_scales(unit, data, self.fit_images, self.batch_size)
            self.objective.begin(
                unit, self.outputs(unit, data), data.targets.split()
            )
            report.objective = self.objective.describe(unit)
            report.before = report.after = self.validate(unit, data)
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

    def learn(
        self,
        unit: Unit,
        data: UnitData,
        generator: torch.Generator,
        report: UnitReport,
    ) -> None:
        """Learn, and write into the report how it went.

        Args:
            unit (Unit): The unit, under nearest rounding.
            data (UnitData): Activations around it.
            generator (torch.Generator): Source of all randomness.
            report (UnitReport): Has the error of nearest rounding; what was
                learned is kept if ``accepted`` is set.

        Raises:
            CannotLearn: If learning has to end: nearest rounding is kept.
        """

    @torch.no_grad()
    def outputs(self, unit: Unit, data: UnitData) -> Iterator[Any]:
        """Yield the unit's outputs for all images, batch by batch."""
        yield from map(partial(_called, unit.module), data.inputs.split())

    def validate(self, unit: Unit, data: UnitData) -> float:
        """Return the error on held-out images, every weight rounded.

        Args:
            unit (Unit): The unit.
            data (UnitData): Activations around it.

        Raises:
            NonFinite: If it is no finite number.
            ValueError: If it is negative: the objective is none.
        """
        unit.module.eval()

        def output(index: Tensor) -> Any:
            args, kwargs = data.inputs.take(index)
            return unit.module(*args, **kwargs)

        error = self._held_out(unit, data, output)
        if not math.isfinite(error):
            raise NonFinite('NaN or infinity in the output, or in its error')
        if error < 0:
            raise ValueError(
                f'{type(self.objective).__name__} has an error of '
                f'{error:.4g} at {unit.name}, expected 0 or more, and 0 '
                'where outputs are the same: add what is missing to its '
                '`error` or `loss`'
            )
        return error

    def energy(self, unit: Unit, data: UnitData) -> float:
        """Return the error of an output of zeros on held-out images."""
        return self._held_out(
            unit,
            data,
            lambda index: map_tensors(
                torch.zeros_like, data.targets.take(index)
            ),
        )

    @torch.no_grad()
    def _held_out(
        self, unit: Unit, data: UnitData, output: Callable[[Tensor], Any]
    ) -> float:
        return mean_error(
            (
                self.objective(
                    unit, output(index), data.targets.take(index), index
                ),
                len(index),
            )
            for index in data.held_out_parts(self.batch_size)
        )


def _called(module: nn.Module, arguments: tuple[tuple, dict]) -> Any:
    """Return what a module gives for arguments that nothing else caches."""
    args, kwargs = arguments
    return module(*args, **kwargs)


#: How a parameter says that it takes a reconstructor.
ReconstructorConfig = Annotated[dict, Config(Reconstructor, TASK_UTILS)]
