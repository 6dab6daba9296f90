"""A unit rounded to the nearest: fit, judge, freeze."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Annotated, Any, Callable, Optional

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from ..functional import map_tensors
from ..graph import Unit
from ..layers import QuantLayer, activation_quantizers, quant_layers
from ..quantizers import ActivationQuantizer
from ..registry import TASK_UTILS
from ..validation import Config, Count
from .autocast import Autocast
from .objectives import MSE, ObjectiveConfig
from .processes import (
    CannotLearn,
    NonFinite,
    mean_error,
    share,
    take_from_first,
    total,
)
from .refiner import NetworkRefiner
from .unit_data import UnitData, UnitReport


class _Seen(BaseException):
    """A quantizer will get nothing more in this pass.

    No error: code between the layers shall not catch it as one.
    """


@TASK_UTILS.register_module()
class NearestRounding:
    """Chooses all steps and rounds to the nearest; learns nothing.

    Attributes:
        autocast: The type of numbers to learn in.
        refiner: What refines the network when all units are done, if
            anything does.

    Args:
        batch_size (int): Images at a time.
        fit_images (int): Images that the activation steps are chosen on.
        objective (dict): Measures the error that is reported.

    Raises:
        ValueError: If a number is below 1.
    """

    autocast = Autocast()
    refiner: Optional[NetworkRefiner] = None

    def __init__(
        self,
        batch_size: Count = 32,
        fit_images: Count = 256,
        objective: Optional[ObjectiveConfig] = None,
    ) -> None:
        self.batch_size = batch_size
        self.fit_images = fit_images
        self.objective: MSE = TASK_UTILS.build(objective or dict(type='MSE'))

    @torch.no_grad()
    def fit(self, unit: Unit, data: UnitData) -> None:
        """Choose the steps of all the unit's quantizers.

        Activations are those that the quantized layers before them give.

        Args:
            unit (Unit): The unit, its quantizers new.
            data (UnitData): Its activations.

        Raises:
            NonFinite: If an activation is no finite number; all quantizers
                have steps nonetheless.
        """
        for layer in open_layers(unit.module):
            layer.weight_quantizer.fit(layer.stored_weight)
        names = {
            quantizer: name
            for name, quantizer in unit.module.named_modules(prefix=unit.name)
            if isinstance(quantizer, ActivationQuantizer)
        }
        broken = []
        while (found := self._next_input(unit, data, list(names))) is not None:
            quantizer, sample = found
            finite = sample.isfinite()
            if not finite.all():
                broken.append(names[quantizer])
            values = torch.where(finite, sample, 0)
            if (values == values[0]).all():
                print_log(
                    f'{names[quantizer]}: the activation is '
                    f'{float(values[0]):g} everywhere, on all calibration '
                    'images that were looked at',
                    'current',
                    logging.WARNING,
                )
            quantizer.fit(values)
            # Samples settle in the gaps that activations leave.
            data.inputs.store.give_back()
        take_from_first(unit.module.buffers())
        if total(torch.tensor(float(len(broken)))):
            where = ', '.join(broken) or 'another process'
            raise NonFinite(f'NaN or infinity at {where}')

    def _next_input(
        self,
        unit: Unit,
        data: UnitData,
        quantizers: Sequence[ActivationQuantizer],
    ) -> Optional[tuple[ActivationQuantizer, Tensor]]:
        """The first quantizer without a step, and a sample of its input.

        The least and the greatest value are among the sample, once each.
        The first part of the images tells how often it is called, and the
        others stop there.
        """
        waiting = [q for q in quantizers if not q.active]
        images = torch.arange(min(share(self.fit_images), len(data.inputs)))
        parts = data.parts(images, self.batch_size)
        found: list[ActivationQuantizer] = []
        samples: list[Tensor] = []
        ends: list[Tensor] = []
        calls = begun = 0

        def look(quantizer: Any, args: Any) -> None:
            if quantizer in (found or [quantizer]):
                found[:] = [quantizer]
                ends.extend(args[0].aminmax())
                samples.append(
                    quantizer.sample(args[0], len(samples), len(parts))
                )
                if len(samples) - begun == calls:
                    raise _Seen

        hooks = [q.register_forward_pre_hook(look) for q in waiting]
        try:
            for index in parts if waiting else ():
                args, kwargs = data.inputs.take(index)
                begun = len(samples)
                with suppress(_Seen):
                    unit.module(*args, **kwargs)
                calls = calls or len(samples)
        finally:
            for hook in hooks:
                hook.remove()
        if not found:
            return None
        extremes = torch.stack(torch.stack(ends).aminmax())
        return found[0], torch.cat([*samples, extremes])

    @torch.no_grad()
    def outputs(self, unit: Unit, data: UnitData) -> Iterator[Any]:
        """What the unit gives for all images, batch by batch as captured."""
        yield from map(partial(_called, unit.module), data.inputs.split())

    def judge(self, unit: Unit, data: UnitData) -> float:
        """Error on the held-out images, with all weights whole.

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
        """The error of an output that is nought, on the held-out images."""
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
                self.objective.loss(
                    unit, output(index), data.targets.take(index), index
                ),
                len(index),
            )
            for index in data.judges(self.batch_size)
        )

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
            self.fit(unit, data)
            self.objective.begin(
                unit, self.outputs(unit, data), data.targets.split()
            )
            report.objective = self.objective.describe(unit)
            report.before = report.after = self.judge(unit, data)
            self.learn(unit, data, generator, report)
        except CannotLearn as error:
            report.note = f'{error}: nearest rounding kept'
        self.objective.end(unit)
        if not report.accepted:
            for quantizer in open_quantizers(unit.module):
                quantizer.forget()
        for quantizer in open_steps(unit.module):
            quantizer.freeze()
        for layer in open_layers(unit.module):
            layer.freeze()
        take_from_first(unit.module.state_dict().values())
        return report

    def learn(
        self,
        unit: Unit,
        data: UnitData,
        generator: torch.Generator,
        report: UnitReport,
    ) -> None:
        """Nothing is learned."""


#: How a parameter says that it takes a reconstructor.
ReconstructorConfig = Annotated[dict, Config(NearestRounding, TASK_UTILS)]


def _called(module: nn.Module, arguments: tuple[tuple, dict]) -> Any:
    """What a module gives for its arguments, of which nobody holds more."""
    args, kwargs = arguments
    return module(*args, **kwargs)


def open_layers(module: nn.Module) -> list[QuantLayer]:
    """The layers that no unit before this one has frozen."""
    return [m for m in quant_layers(module).values() if not m.frozen]


def open_steps(module: nn.Module) -> list[ActivationQuantizer]:
    """The activation quantizers that are not those of frozen layers."""
    closed = {
        m.input_quantizer for m in quant_layers(module).values() if m.frozen
    }
    return [q for q in activation_quantizers(module) if q not in closed]


def open_quantizers(module: nn.Module) -> list[Any]:
    """The quantizers of weights and activations that are not frozen."""
    weights = [layer.weight_quantizer for layer in open_layers(module)]
    return weights + open_steps(module)
