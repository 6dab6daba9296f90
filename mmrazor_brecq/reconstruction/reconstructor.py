"""A unit that learns how to round (BRECQ, alg. 1)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Optional

import torch
from torch import Tensor

from ..functional import annealed_beta
from ..graph import Unit
from ..layers import QuantLayer, activation_quantizers
from ..quantizers.activation import MaskPool
from ..registry import TASK_UTILS
from ..validation import Amount, Count, Positive, Rate, Share
from .autocast import Autocast, AutocastName, as_taken
from .nearest import (
    NearestRounding,
    open_layers,
    open_quantizers,
    open_steps,
)
from .objectives import ObjectiveConfig
from .processes import adam, minimise, share
from .refiner import RefinerConfig
from .stopping import StoppingConfig, WhenSettled
from .unit_data import UnitData, UnitReport


@TASK_UTILS.register_module()
class BlockReconstructor(NearestRounding):
    """Learns rounding and steps of one unit together (BRECQ, alg. 1).

    Args:
        iterations (int): Steps of the optimiser for each layer of a unit:
            the more layers learn together, the longer they take. Layers
            side by side, such as that of a shortcut, count once.
        rounding_lr (float): Learning rate of the rounding variables.
        weight_scale_lr (float): Of the logarithm of the weight steps, over
            the root of the number of weights that a step has.
        activation_scale_lr (float): Of the logarithm of the activation
            steps.
        penalty (float): Weight of the rounding penalty, relative to the
            error that nearest rounding leaves.
        warmup (float): Share of the iterations without the penalty.
        beta (tuple[float, float]): Exponent of the penalty, first and
            last.
        negligible (float): Error, as a share of the output's energy, below
            which nearest rounding is kept as it is.
        batch_size (int): Images an iteration, those of all processes
            together.
        fit_images (int): Images that the activation steps are chosen on.
        autocast (str, optional): Type of the numbers that convolutions and
            matrix products take while units or all of them learn; see
            :class:`Autocast`. What judges is exact.
        stopping (dict, optional): What ends the learning of a unit before
            its iterations are over, such as :class:`WhenSettled`.
        objective (dict): The error to make small.
        refiner (dict, optional): A last pass over the whole network.

    Raises:
        ValueError: If a count is below 1, or another number negative.
    """

    def __init__(
        self,
        iterations: Count = 80,
        rounding_lr: Rate = 0.2,
        weight_scale_lr: Rate = 0.02,
        activation_scale_lr: Rate = 1e-3,
        penalty: Amount = 0.1,
        warmup: Share = 0.2,
        beta: tuple[Positive, Positive] = (20.0, 2.0),
        negligible: Share = 1e-5,
        batch_size: Count = 64,
        fit_images: Count = 256,
        autocast: AutocastName = None,
        stopping: Optional[StoppingConfig] = None,
        objective: Optional[ObjectiveConfig] = None,
        refiner: Optional[RefinerConfig] = None,
    ) -> None:
        super().__init__(
            batch_size, fit_images, objective or dict(type='FisherDiag')
        )
        self.iterations = iterations
        self.rounding_lr = rounding_lr
        self.weight_scale_lr = weight_scale_lr
        self.activation_scale_lr = activation_scale_lr
        self.penalty = penalty
        self.warmup = warmup
        self.beta = beta
        self.negligible = negligible
        self.autocast = Autocast(autocast)
        self.stopping: Optional[WhenSettled] = (
            None if stopping is None else TASK_UTILS.build(stopping)
        )
        if refiner is not None:
            self.refiner = TASK_UTILS.build(refiner)
            self.refiner.autocast = self.autocast

    def learn(
        self,
        unit: Unit,
        data: UnitData,
        generator: torch.Generator,
        report: UnitReport,
    ) -> None:
        """Learn, and keep what was learned if held-out images agree.

        Where nearest rounding errs by less than ``negligible`` of the
        float output's energy, there is nothing to win.

        Raises:
            NonFinite: If the loss or the error is no finite number.
        """
        if report.before < self.negligible * self.energy(unit, data):
            report.note = 'error is negligible: nearest kept'
            return
        layers = open_layers(unit.module)
        for layer in layers:
            layer.weight_quantizer.learn(layer.stored_weight)
        device = next(unit.module.parameters()).device
        masks = MaskPool(generator, device)
        for quantizer in open_steps(unit.module):
            quantizer.learn(masks)
        optimizer = self._optimizer(unit, layers)
        if optimizer is None:
            report.note = 'there is nothing to learn: nearest kept'
            return
        _train(unit)
        self._optimise(unit, optimizer, data, masks, generator, report)
        report.after = self.judge(unit, data)
        report.accepted = report.after < report.before
        if not report.accepted:
            report.note = 'held-out error did not fall: nearest kept'

    def _optimise(
        self,
        unit: Unit,
        optimizer: torch.optim.Optimizer,
        data: UnitData,
        masks: MaskPool,
        generator: torch.Generator,
        report: UnitReport,
    ) -> None:
        layers = open_layers(unit.module)
        iterations = self.iterations * max(1, min(unit.depth, len(layers)))
        quantizers = activation_quantizers(unit.module)
        drop = quantizers[0].drop_prob if quantizers else 0.0
        batch = share(self.batch_size)

        def errors(i: int) -> Iterator[Tensor]:
            index = torch.randint(data.trained, (batch,), generator=generator)
            self._press(layers, i / iterations)
            return self._errors(unit, data, index, drop, masks)

        def judge() -> float:
            error = self.judge(unit, data)
            _train(unit)
            return error

        settled = None
        if self.stopping is not None:
            settled = self.stopping.watch(layers, judge)
        report.iterations = minimise(
            errors,
            optimizer,
            iterations,
            report.losses,
            max(report.before, 1e-12),  # The error of nearest rounding.
            settled,
        )

    def _press(self, layers: list[QuantLayer], progress: float) -> None:
        """Push what is undecided, once the warmup is over."""
        if progress < self.warmup or not layers:
            return
        weights = sum(layer.stored_weight.numel() for layer in layers)
        pressure = torch.tensor(
            [
                self.penalty / weights,
                annealed_beta(progress, self.warmup, *self.beta),
            ],
            device=layers[0].stored_weight.device,
        )
        for layer in layers:
            layer.weight_quantizer.rounding.press(pressure)

    def _errors(
        self,
        unit: Unit,
        data: UnitData,
        index: Tensor,
        drop: float,
        masks: MaskPool,
    ) -> Iterator[Tensor]:
        """The error of a batch, part by part."""
        for part in data.parts(index, len(index)):
            args, kwargs = self._mixed_inputs(data, part, drop, masks)
            with self.autocast(masks.device):
                output = unit.module(*args, **kwargs)
            target = data.targets.take(part)
            loss = self.objective.loss
            error = loss(unit, as_taken(loss, output), target, part)
            # The way back needs some of it, and holds that itself.
            del args, kwargs, output, target
            yield error * (len(part) / len(index))

    def _optimizer(
        self, unit: Unit, layers: list[QuantLayer]
    ) -> Optional[torch.optim.Optimizer]:
        weights = [layer.weight_quantizer for layer in layers]
        inputs = activation_quantizers(unit.module)
        steps = [q.log_step for q in weights if q.log_step is not None]
        return adam(
            [
                (
                    [p for q in weights for p in q.trainable()],
                    self.rounding_lr,
                ),
                (steps, self.weight_scale_lr),
                (
                    [p for q in inputs for p in q.trainable()],
                    self.activation_scale_lr,
                ),
            ]
        )

    @staticmethod
    def _mixed_inputs(
        data: UnitData, index: Tensor, drop: float, masks: MaskPool
    ) -> Any:
        """Inputs of which some elements come from the float network."""
        if not drop:
            return data.inputs.take(index)
        return data.inputs.mixed(
            data.float_inputs,
            index,
            lambda x, y: masks.mix(x, y, 1 - drop),
        )


def _train(unit: Unit) -> None:
    """Let the quantizers that are not frozen learn."""
    for quantizer in open_quantizers(unit.module):
        quantizer.train()
