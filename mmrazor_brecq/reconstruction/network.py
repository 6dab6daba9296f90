"""The whole network once more, when all its units are integers."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any, Optional

import torch
from torch import Tensor, nn

from ..activations import (
    MAX_ELEMENTS_BACKWARD,
    MAX_ELEMENTS_FORWARD,
    CachedBatches,
    images_per_pass,
)
from ..functional import at_least_float32, to_normal_tensor
from ..graph import run_float
from ..layers import activation_quantizers, quant_layers
from ..objectives import Likelihood, LikelihoodConfig, real_outputs
from ..registry import TASK_UTILS
from ..runtime.autocast import Autocast
from ..runtime.distributed import (
    copy_from_first_process,
    local_share,
    mean_error,
    process_generator,
)
from ..validation import Config, Count, Rate
from .augment import AugmentationConfig
from .optimize import CannotLearn, Descent
from .unit import UnitReport

#: What a report calls the whole network.
WHOLE = 'all units together'


@TASK_UTILS.register_module()
class NetworkRefiner:
    """Fits all roundings, steps and biases to the float network's output.

    Units are reconstructed one by one, and none knows what those after it
    make of its error. A pass over all of them does: rounding passes
    gradients straight through (Bengio et al., 2013), and begins where the
    units left it. What is made small is the divergence of what the network
    says from what the float network says (Hinton et al., 2015). Images are
    varied anew in every iteration, for there are few of them and many
    weights.

    Attributes:
        autocast: The type of numbers to learn in, that of the reconstructor.

    Args:
        iterations (int): Steps of the optimiser.
        rounding_lr (float): Learning rate of the weights, in their steps.
        weight_scale_lr (float): Of the logarithm of the weight steps, over
            the root of the number of weights that a step has.
        activation_scale_lr (float): Of the logarithm of the activation
            steps, but for those of 8 bits, which stay as they are.
        bias_lr (float): Of the biases.
        batch_size (int): Images an iteration, those of all processes
            together.
        augment (list[dict]): How images are varied: by default half of them
            have a part of another one in them, and over half of them
            another one is laid. Variations that give images which never
            occur, such as shoes that point to the other side, do harm.
        draws (int): Variations of each held-out image that judge, 1 or
            more; without ``augment`` they are all the same, and one is
            enough.
        likelihood (dict): What the network's outputs mean: by default
            their form tells, with classes at a temperature of 4;
            ``Gaussian`` where it regresses.

    Raises:
        ValueError: If a count is below 1, or a rate negative.
    """

    autocast = Autocast()

    def __init__(
        self,
        iterations: Count = 1200,
        rounding_lr: Rate = 1e-2,
        weight_scale_lr: Rate = 0.04,
        activation_scale_lr: Rate = 5e-3,
        bias_lr: Rate = 1e-3,
        batch_size: Count = 64,
        augment: Optional[Sequence[AugmentationConfig]] = None,
        draws: Count = 8,
        likelihood: Optional[LikelihoodConfig] = None,
    ) -> None:
        self.iterations = iterations
        self.rounding_lr = rounding_lr
        self.weight_scale_lr = weight_scale_lr
        self.activation_scale_lr = activation_scale_lr
        self.bias_lr = bias_lr
        self.batch_size = batch_size
        if augment is None:
            augment = [dict(type='CutMix'), dict(type='MixUp')]
        self.augment = [TASK_UTILS.build(cfg) for cfg in augment]
        self.draws = draws
        classes = dict(type='Categorical', temperature=4.0)
        self.likelihood: Likelihood = TASK_UTILS.build(
            likelihood or dict(type='FromOutput', classes=classes)
        )

    def __call__(
        self,
        network: nn.Module,
        teacher: nn.Module,
        images: CachedBatches,
        held_out: int,
        seed: int,
    ) -> UnitReport:
        """Refine a network of integers; integers it is again afterwards.

        Args:
            network (nn.Module): Every layer frozen.
            teacher (nn.Module): The float network.
            images (CachedBatches): Preprocessed inputs of this process.
            held_out (int): Images at the end that only validate.
            seed (int): Of all randomness.

        Returns:
            UnitReport: How it went, the error being the divergence in
            nats. What did not help on the images held out is undone.
        """
        start = time.perf_counter()
        report = UnitReport(
            WHOLE,
            list(quant_layers(network)),
            autocast=self.autocast.chosen,
        )
        self._see(teacher, images)
        report.objective = str(self.likelihood)
        before = copy.deepcopy(network.state_dict())
        trained = len(images) - held_out

        def examined() -> Iterator[Tensor]:
            return self._examined(images, trained, seed)

        with torch.no_grad():
            goals = [_answers(teacher, x) for x in examined()]
        if not all(goals):
            report.before = report.after = 0.0
            report.note = 'the network gives no real numbers: left as it was'
            return report
        report.before = self._validate(network, examined(), goals)
        report.after = report.before
        try:
            self._minimize(network, teacher, images, trained, seed, report)
        except CannotLearn as error:
            report.note = f'{error}: left as it was'
        for quantizer in activation_quantizers(network):
            quantizer.freeze()
        for layer in quant_layers(network).values():
            layer.freeze()
        network.requires_grad_(False)
        copy_from_first_process(network.state_dict().values())
        if not report.note:
            report.after = self._validate(network, examined(), goals)
            report.accepted = report.after < report.before
            if not report.accepted:
                report.note = 'held-out error did not fall: left as it was'
        if not report.accepted:
            network.load_state_dict(before)
        report.seconds = time.perf_counter() - start
        return report

    @torch.no_grad()
    def divergence(
        self,
        network: nn.Module,
        teacher: nn.Module,
        images: CachedBatches,
        first: int,
    ) -> float:
        """Return how far a network is from the float one, in nats.

        Args:
            network (nn.Module): The network.
            teacher (nn.Module): The float network.
            images (CachedBatches): Preprocessed inputs, those of this
                process.
            first (int): The first of the images held out.
        """
        self._see(teacher, images)
        # Each as it is asked for: those of maps are large.
        goals = (_answers(teacher, x) for x in self._examined(images, first))
        return self._validate(network, self._examined(images, first), goals)

    @torch.no_grad()
    def _see(self, teacher: nn.Module, images: CachedBatches) -> None:
        """Show the likelihood the images that objectives show theirs."""
        some = images.batch(0)[
            : images_per_pass(images.elements, 32, MAX_ELEMENTS_BACKWARD)
        ]
        self.likelihood.see(teacher, some, _answers(teacher, some))

    def _reopen(
        self, network: nn.Module, teacher: nn.Module
    ) -> list[tuple[list[nn.Parameter], float]]:
        """Make the weights real and all parameters learnable."""
        weights: list[nn.Parameter] = []
        steps: list[nn.Parameter] = []
        inputs: list[nn.Parameter] = []
        biases: list[Any] = []
        for name, layer in quant_layers(network).items():
            quantizer: Any = layer.weight_quantizer
            layer.thaw(teacher.get_parameter(f'{name}.weight'))
            quantizer.learn(layer.stored_weight, dict(type='StraightThrough'))
            weights += quantizer.trainable()
            if quantizer.log_scale is not None:
                steps.append(quantizer.log_scale)
            if layer.bias is not None:
                biases.append(layer.bias.requires_grad_())
        for activation in activation_quantizers(network):
            # Eight bits err little, and the step of the images would ask for
            # the way back through the first layer: a tenth of an iteration.
            if activation.active and activation.grid.bits < 8:
                activation.learn()
                inputs += activation.trainable()
        return [
            (weights, self.rounding_lr),
            (steps, self.weight_scale_lr),
            (inputs, self.activation_scale_lr),
            (biases, self.bias_lr),
        ]

    def _minimize(
        self,
        network: nn.Module,
        teacher: nn.Module,
        images: CachedBatches,
        trained: int,
        seed: int,
        report: UnitReport,
    ) -> None:
        """Minimize the divergence from the float network's outputs."""
        generator = process_generator(seed)
        batch = local_share(self.batch_size)
        # Parts of half a batch would take a sixth longer.
        room = (
            3 * MAX_ELEMENTS_BACKWARD
            if self.autocast.low_precision
            else 3 * MAX_ELEMENTS_BACKWARD // 2
        )
        together = images_per_pass(
            images.elements, max_images=batch, max_elements=room
        )
        descent = Descent(
            self._reopen(network, teacher), self.iterations, report.losses
        )
        for _ in descent:
            index = torch.randint(trained, (batch,), generator=generator)
            varied = self._varied(images, index, generator)
            for part in varied.split(together):
                error = self._error(network, teacher, part)
                descent.backward(error * (len(part) / batch))
            descent.step()
        report.iterations = descent.taken

    def _error(
        self, network: nn.Module, teacher: nn.Module, images: Tensor
    ) -> Tensor:
        """Return the divergence on some images."""
        with self.autocast(images.device):
            with torch.no_grad():
                goals = _answers(teacher, images)
            outputs = _answers(network, images)
        return self.likelihood.divergence(outputs, goals)

    def _examined(
        self, images: CachedBatches, first: int, seed: int = 0
    ) -> Iterator[Tensor]:
        """The images from ``first`` on, each varied several times.

        They are few, and one that lies between two classes can outweigh all
        others: its variations rarely do so all together.
        """
        generator = process_generator(seed)
        size = images_per_pass(
            images.elements,
            max_images=self.batch_size,
            max_elements=MAX_ELEMENTS_FORWARD,
        )
        draws = self.draws if self.augment else 1
        index = torch.arange(first, len(images)).repeat(draws)
        for part in index.split(size):
            yield self._varied(images, part, generator)

    @torch.no_grad()
    def _validate(
        self,
        network: nn.Module,
        examined: Iterable[Tensor],
        goals: Iterable[list[Tensor]],
    ) -> float:
        """How far a network's answers are from what they ought to be."""
        network.eval()
        return mean_error(
            (self.likelihood.divergence(_answers(network, x), goal), len(x))
            for x, goal in zip(examined, goals)
        )

    def _varied(
        self, images: CachedBatches, index: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Some images, varied anew."""
        batch = images.take(index)
        for augment in self.augment:
            batch = augment(batch, generator)
        return batch


#: How a parameter says that it takes a refiner.
RefinerConfig = Annotated[dict, Config(NetworkRefiner, TASK_UTILS)]


def _answers(network: nn.Module, images: Tensor) -> list[Tensor]:
    """What a network says, in numbers of four bytes or more."""
    return [
        to_normal_tensor(x)
        for x in at_least_float32(real_outputs(run_float(network, images)))
    ]
