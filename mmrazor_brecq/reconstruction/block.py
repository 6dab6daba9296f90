"""A unit that learns how to round (BRECQ, alg. 1)."""

from __future__ import annotations

from typing import Any, Callable, Optional, Union

import torch
from torch import Tensor, nn

from ..functional import annealed_beta
from ..graph import Unit
from ..layers import QuantLayer, activation_quantizers
from ..objectives import ObjectiveConfig
from ..quantizers import MaskPool
from ..registry import TASK_UTILS
from ..runtime.autocast import Autocast, AutocastName
from ..runtime.distributed import local_share
from ..validation import Amount, Count, Fraction, Positive, Rate
from .base import Reconstructor
from .network import RefinerConfig
from .open_parts import open_activations, open_layers, open_quantizers
from .optimize import Descent
from .stopping import StoppingConfig, WhenSettled
from .unit import UnitData, UnitReport


@TASK_UTILS.register_module()
class BlockReconstructor(Reconstructor):
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
        warmup (float): Fraction of the iterations without the penalty.
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
        warmup: Fraction = 0.2,
        beta: tuple[Positive, Positive] = (20.0, 2.0),
        negligible: Fraction = 1e-5,
        batch_size: Count = 64,
        fit_images: Count = 256,
        autocast: AutocastName = None,
        stopping: Optional[StoppingConfig] = None,
        objective: Optional[ObjectiveConfig] = None,
        refiner: Optional[RefinerConfig] = None,
    ) -> None:
        super().__init__(
            TASK_UTILS.build(objective or dict(type='FisherDiag')),
            batch_size,
            fit_images,
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
        for quantizer in open_activations(unit.module):
            quantizer.learn(masks)
        self._minimize(unit, data, generator, masks, report)
        report.after = self.validate(unit, data)
        report.accepted = report.after < report.before
        if not report.accepted:
            report.note = 'held-out error did not fall: nearest kept'

    def _minimize(
        self,
        unit: Unit,
        data: UnitData,
        generator: torch.Generator,
        masks: MaskPool,
        report: UnitReport,
    ) -> None:
        """Minimize the error and the rounding penalty (BRECQ, alg. 1)."""
        layers = open_layers(unit.module)
        batch = local_share(self.batch_size)
        scale = max(report.before, 1e-12)  # The error of nearest rounding.
        descent = Descent(
            self._learned(unit, layers),
            self.iterations * max(1, min(unit.depth, len(layers))),
            report.losses,
        )
        settled = self._settled(unit, data, layers)
        _train(unit)
        for i in descent:
            index = torch.randint(data.trained, (batch,), generator=generator)
            for k, part in enumerate(data.parts(index, batch)):
                error = self._error(unit, data, part, masks)
                error = error * (len(part) / batch)
                loss = error / scale
                if not k:  # It counts once, whatever the parts.
                    loss = loss + self._penalty(layers, i / descent.iterations)
                descent.backward(error, loss)
            descent.step()
            if settled(i):
                break
        report.iterations = descent.taken

    def _error(
        self, unit: Unit, data: UnitData, index: Tensor, masks: MaskPool
    ) -> Tensor:
        """Return the error of the unit's output on some images."""
        args, kwargs = self._mixed_inputs(unit, data, index, masks)
        with self.autocast(masks.device):
            output = unit.module(*args, **kwargs)
        return self.objective(unit, output, data.targets.take(index), index)

    def _penalty(
        self, layers: list[QuantLayer], progress: float
    ) -> Union[Tensor, float]:
        """Return the rounding penalty, the mean over weights (eq. 24 of
        AdaRound), once the warmup is over.
        """
        if progress < self.warmup:
            return 0.0
        beta = annealed_beta(progress, self.warmup, *self.beta)
        weights = sum(layer.stored_weight.numel() for layer in layers)
        roundings = [layer.weight_quantizer.rounding for layer in layers]
        found = [r.penalty(beta) for r in roundings if r is not None]
        return sum(self.penalty / weights * x for x in found if x is not None)

    def _settled(
        self, unit: Unit, data: UnitData, layers: list[QuantLayer]
    ) -> Callable[[int], bool]:
        """Return what says whether an iteration is to be the last."""
        if self.stopping is None:
            return lambda i: False

        def validate() -> float:
            error = self.validate(unit, data)
            _train(unit)
            return error

        return self.stopping.watch(layers, validate)

    def _learned(
        self, unit: Unit, layers: list[QuantLayer]
    ) -> list[tuple[list[nn.Parameter], float]]:
        """Return what is learned, and at which rate."""
        weights = [layer.weight_quantizer for layer in layers]
        inputs = activation_quantizers(unit.module)
        steps = [q.log_scale for q in weights if q.log_scale is not None]
        return [
            ([p for q in weights for p in q.trainable()], self.rounding_lr),
            (steps, self.weight_scale_lr),
            (
                [p for q in inputs for p in q.trainable()],
                self.activation_scale_lr,
            ),
        ]

    @staticmethod
    def _mixed_inputs(
        unit: Unit, data: UnitData, index: Tensor, masks: MaskPool
    ) -> Any:
        """Return inputs of which some elements are the float network's
        (QDrop).
        """
        quantizers = activation_quantizers(unit.module)
        drop = quantizers[0].drop_prob if quantizers else 0.0
        if not drop:
            return data.inputs.take(index)
        return data.inputs.take_mixed(
            data.float_inputs,
            index,
            lambda x, y: masks.mix(x, y, 1 - drop),
        )


def _train(unit: Unit) -> None:
    """Let the quantizers that are not frozen learn."""
    for quantizer in open_quantizers(unit.module):
        quantizer.train()
