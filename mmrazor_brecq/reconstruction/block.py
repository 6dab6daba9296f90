"""Reconstruction of a unit by learning how to round: BRECQ's algorithm 1.

Li et al., "BRECQ: Pushing the Limit of Post-Training Quantization by Block
Reconstruction", ICLR 2021. For each unit, in the order of execution::

    fit first scales; weights round to nearest          fit_scales
    repeat:                                             _minimize
        sample a batch of the unit's inputs             torch.randint
        replace some elements by float ones (QDrop)     _mixed_inputs
        run the unit with relaxed, quantized weights    unit.module
        error  = distance to the float output           objective
        loss   = error + rounding penalty (AdaRound)    _penalty
        compute gradients                               descent.backward
        change roundings and scales by Adam             descent.step
    round all weights up or down and validate           validate
    keep them if the error on held-out images fell      learn
    replace the weights by integers                     freeze

:class:`Reconstructor` does the first and the last step for every method.
"""

from __future__ import annotations

import math
from itertools import chain
from typing import Callable, Optional, Union

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
from .positions import positions
from .stopping import StoppingConfig, WhenSettled
from .unit import UnitData, UnitReport


@TASK_UTILS.register_module()
class BlockReconstructor(Reconstructor):
    """Reconstructor that learns rounding and scales of a unit together.

    The algorithm is at the top of this module.

    Args:
        iterations (int): Number of iterations for each layer of a unit:
            units with more layers learn longer. Parallel layers, such as
            that of a shortcut, count as one.
        rounding_lr (float): Learning rate of the rounding variables.
        weight_scale_lr (float): Learning rate of the logarithm of a weight
            scale, over the root of the number of its weights.
        activation_scale_lr (float): Learning rate of the logarithm of an
            activation scale.
        penalty (float): Weight of the rounding penalty, relative to the
            error of nearest rounding.
        warmup (float): Fraction of the iterations without the penalty.
        beta (tuple[float, float]): First and last exponent of the penalty.
        negligible (float): Error of nearest rounding, as a fraction of the
            output's energy, below which nothing is learned.
        batch_size (int): Largest number of images of an iteration, in all
            processes together.
        max_positions (int): Number of positions in an iteration that are
            enough: a unit whose layers compute many outputs for each image
            learns from fewer images at a time, see :func:`positions`.
        fit_images (int): Number of images that activation scales are chosen
            on.
        autocast (str, optional): Type of convolutions and matrix products
            during learning, see :class:`Autocast`. Validation is in full
            precision.
        stopping (dict, optional): Config of a rule that ends learning early,
            such as :class:`WhenSettled`.
        objective (dict): Config of the error to minimize; by default
            :class:`FisherDiag`.
        refiner (dict, optional): Config of a last pass over the whole
            network, see :class:`NetworkRefiner`.

    Raises:
        ValueError: If a count is below 1, or another number negative.

    Example:
        >>> model = dict(
        ...     reconstructor=dict(
        ...         type='BlockReconstructor', iterations=80, batch_size=64
        ...     )
        ... )
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
        max_positions: Count = 2**16,
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
        self.max_positions = max_positions
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
        """Learn, and accept the result if the held-out error fell.

        Nothing is learned if the error of nearest rounding is below
        ``negligible`` of the output's energy.

        Raises:
            NonFinite: If the loss or the error is NaN or infinite.
        """
        if report.before < self.negligible * self.energy(unit, data):
            report.note = 'error is negligible: nearest kept'
            return
        for layer in open_layers(unit.module):
            layer.weight_quantizer.learn(layer.stored_weight)
        masks = MaskPool(generator, _device(unit.module))
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
        """Minimize the error and the rounding penalty."""
        layers = open_layers(unit.module)
        batch = local_share(self._images(unit, data))
        nearest_error = max(report.before, 1e-12)
        quantizers = activation_quantizers(unit.module)
        drop_prob = quantizers[0].drop_prob if quantizers else 0.0
        descent = Descent(
            self._learned(unit, layers),
            self.iterations * max(1, min(unit.depth, len(layers))),
            report.losses,
        )
        is_last = self._stopping_rule(unit, data, layers)
        _train(unit)
        for i in descent:
            index = torch.randint(data.trained, (batch,), generator=generator)
            for k, part in enumerate(data.parts(index, batch)):
                error = self._error(unit, data, part, drop_prob, masks)
                error = error * (len(part) / batch)
                loss = error / nearest_error
                if k == 0:  # Once for the batch, and after the unit has run.
                    loss = loss + self._penalty(layers, i / descent.iterations)
                descent.backward(error, loss)
            descent.step()
            if is_last(i):
                break
        report.iterations = descent.taken

    def _images(self, unit: Unit, data: UnitData) -> int:
        """Return how many images an iteration has, in all processes."""
        enough = math.ceil(self.max_positions / positions(unit, data))
        return min(self.batch_size, enough)

    def _error(
        self,
        unit: Unit,
        data: UnitData,
        index: Tensor,
        drop_prob: float,
        masks: MaskPool,
    ) -> Tensor:
        """Return the error of the unit's output for some images."""
        args, kwargs = self._mixed_inputs(data, index, drop_prob, masks)
        with self.autocast(masks.device):
            output = unit.module(*args, **kwargs)
        return self.objective(unit, output, data.targets.take(index), index)

    def _penalty(
        self, layers: list[QuantLayer], progress: float
    ) -> Union[Tensor, float]:
        """Return the weighted rounding penalty, the mean over weights.

        Args:
            layers (list[QuantLayer]): The layers that learn.
            progress (float): Fraction of the iterations done, 0 to 1.

        Returns:
            Tensor | float: A scalar (AdaRound, eq. 24), and 0 during the
            warmup.
        """
        if progress < self.warmup:
            return 0.0
        beta = annealed_beta(progress, self.warmup, *self.beta)
        weights = sum(layer.stored_weight.numel() for layer in layers)
        roundings = [layer.weight_quantizer.rounding for layer in layers]
        found = [r.penalty(beta) for r in roundings if r is not None]
        return sum(self.penalty / weights * x for x in found if x is not None)

    def _stopping_rule(
        self, unit: Unit, data: UnitData, layers: list[QuantLayer]
    ) -> Callable[[int], bool]:
        """Return a function from an iteration to whether it is the last."""
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
        """Return the parameters that learn, and their learning rates."""
        weights = [layer.weight_quantizer for layer in layers]
        inputs = activation_quantizers(unit.module)
        roundings = [p for q in weights for p in q.trainable()]
        scales = [q.log_scale for q in weights if q.log_scale is not None]
        input_scales = [p for q in inputs for p in q.trainable()]
        return [
            (roundings, self.rounding_lr),
            (scales, self.weight_scale_lr),
            (input_scales, self.activation_scale_lr),
        ]

    @staticmethod
    def _mixed_inputs(
        data: UnitData, index: Tensor, drop_prob: float, masks: MaskPool
    ) -> tuple[tuple, dict]:
        """Return a unit's arguments, with some elements in float (QDrop)."""
        if not drop_prob:
            return data.inputs.take(index)
        return data.inputs.take_mixed(
            data.float_inputs,
            index,
            lambda x, y: masks.mix(x, y, 1 - drop_prob),
        )


def _device(module: nn.Module) -> torch.device:
    """Return the device of a unit, which may have quantizers alone."""
    return next(chain(module.parameters(), module.buffers())).device


def _train(unit: Unit) -> None:
    """Set the quantizers that are not frozen to training mode."""
    for quantizer in open_quantizers(unit.module):
        quantizer.train()
