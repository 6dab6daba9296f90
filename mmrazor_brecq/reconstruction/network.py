"""Last pass: all roundings, scales and biases of a network together."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Callable, Optional

import torch
from torch import Tensor, nn

from ..activations import (
    MAX_ELEMENTS_BACKWARD,
    MAX_ELEMENTS_FORWARD,
    CachedBatches,
    images_per_pass,
)
from ..functional import at_least_float32, to_normal_tensor
from ..graph import Arguments, Inputs, map_images, run_float
from ..layers import quant_layers
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
from .reopen import close, reopen
from .unit import UnitReport

#: Name of the whole network in reports.
WHOLE = 'all units together'


@TASK_UTILS.register_module()
class NetworkRefiner:
    """Last pass that fits a quantized network to the float outputs.

    Units are reconstructed one by one, without regard to what later units
    make of their errors. This pass minimizes the divergence of the network's
    outputs from those of the float network (Hinton et al., 2015). Rounding
    passes gradients straight through (Bengio et al., 2013) and starts from
    the integers of the units. The images are varied anew in each iteration,
    because there are few of them and many weights.

    Attributes:
        autocast (Autocast): Precision to learn in, set by the reconstructor.

    Args:
        iterations (int): Number of optimizer steps.
        rounding_lr (float): Learning rate of the weights over their scale.
        weight_scale_lr (float): Learning rate of the logarithm of a weight
            scale, over the root of the number of its weights.
        activation_scale_lr (float): Learning rate of the logarithm of an
            activation scale. Scales of 8 bits are not learned.
        bias_lr (float): Learning rate of the biases.
        batch_size (int): Number of images of an iteration, in all processes
            together.
        augment (list[dict]): Configs of the augmentations; by default
            :class:`CutMix` and :class:`MixUp`. Variations that do not occur
            in reality do harm, such as shoes that point to the other side.
        draws (int): Number of variations of each held-out image, 1 or more.
            Without augmentations it is 1.
        likelihood (dict): Config of the likelihood of the network's outputs.
            By default :class:`FromOutput` chooses it, with a temperature of
            4 for classes; use ``Gaussian`` for a network that regresses.

    Raises:
        ValueError: If a count is below 1, or a rate negative.

    Example:
        >>> reconstructor = dict(
        ...     type='BlockReconstructor',
        ...     refiner=dict(type='NetworkRefiner', iterations=1200),
        ... )
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
        """Refine a quantized network.

        Args:
            network (nn.Module): The network, with all layers frozen. They
                are frozen afterwards, too.
            teacher (nn.Module): The float network.
            images (CachedBatches): Preprocessed images of this process.
            held_out (int): Number of images, the last ones, that are held
                out for validation.
            seed (int): Seed of all randomness.

        Returns:
            UnitReport: Its errors are divergences in nats on held-out
            images. If the divergence did not fall, the network is as it was.
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

        def held_out_images() -> Iterator[Inputs]:
            return self._held_out(images, trained, seed)

        with torch.no_grad():
            goals = [float_outputs(teacher, x) for x in held_out_images()]
        if not all(goals):
            report.before = report.after = 0.0
            report.note = 'the network returns no real numbers: left as it was'
            return report
        report.before = self._validate(network, held_out_images(), goals)
        report.after = report.before
        try:
            self._minimize(network, teacher, images, trained, seed, report)
        except CannotLearn as error:
            report.note = f'{error}: left as it was'
        close(network)
        copy_from_first_process(network.state_dict().values())
        if not report.note:
            report.after = self._validate(network, held_out_images(), goals)
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
        """Return the divergence of a network from the float one, in nats.

        Args:
            network (nn.Module): The network.
            teacher (nn.Module): The float network.
            images (CachedBatches): Preprocessed images of this process.
            first (int): Index of the first held-out image.
        """
        self._see(teacher, images)
        # Computed when they are needed, because outputs may be large maps.
        goals = (
            float_outputs(teacher, x) for x in self._held_out(images, first)
        )
        return self._validate(network, self._held_out(images, first), goals)

    @torch.no_grad()
    def divergence_from(
        self, teacher: nn.Module, images: CachedBatches, span: range
    ) -> Callable[[nn.Module], float]:
        """Return a function from a network to its divergence, in nats.

        The outputs of the float network are computed once and kept.

        Args:
            teacher (nn.Module): The float network.
            images (CachedBatches): Preprocessed images of this process.
            span (range): Indices of the images that count, a few.
        """
        self._see(teacher, images)
        ends = span.start, 0, span.stop
        goals = [
            float_outputs(teacher, x) for x in self._held_out(images, *ends)
        ]

        def divergence(network: nn.Module) -> float:
            some = self._held_out(images, *ends)
            return self._validate(network, some, goals)

        return divergence

    @torch.no_grad()
    def _see(self, teacher: nn.Module, images: CachedBatches) -> None:
        """Show the likelihood as many images as an objective shows it."""
        some = images.batch(0)[
            : images_per_pass(images.elements, 32, MAX_ELEMENTS_BACKWARD)
        ]
        self.likelihood.see(teacher, some, float_outputs(teacher, some))

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
        # With more parts, an iteration would take a sixth longer.
        max_elements = (
            3 * MAX_ELEMENTS_BACKWARD
            if self.autocast.low_precision
            else 3 * MAX_ELEMENTS_BACKWARD // 2
        )
        size = images_per_pass(
            images.elements, max_images=batch, max_elements=max_elements
        )
        parts = reopen(network, teacher)
        descent = Descent(
            [
                (parts.weights, self.rounding_lr),
                (parts.weight_scales, self.weight_scale_lr),
                (parts.activation_scales, self.activation_scale_lr),
                (parts.biases, self.bias_lr),
            ],
            self.iterations,
            report.losses,
        )
        for _ in descent:
            index = torch.randint(trained, (batch,), generator=generator)
            varied = self._varied(images, index, generator)
            for part in varied.split(size):
                error = self._error(network, teacher, part)
                descent.backward(error * (len(part) / batch))
            descent.step()
        report.iterations = descent.taken

    def _error(
        self, network: nn.Module, teacher: nn.Module, images: Inputs
    ) -> Tensor:
        """Return the divergence for some images."""
        with self.autocast(images.device):
            with torch.no_grad():
                goals = float_outputs(teacher, images)
            outputs = float_outputs(network, images)
        return self.likelihood.divergence(outputs, goals)

    def _held_out(
        self,
        images: CachedBatches,
        first: int,
        seed: int = 0,
        stop: Optional[int] = None,
    ) -> Iterator[Inputs]:
        """Yield the images from ``first`` to ``stop``, varied several times.

        They are few, and an image that lies between two classes can outweigh
        all others. Its variations rarely do so together.
        """
        generator = process_generator(seed)
        size = images_per_pass(
            images.elements,
            max_images=self.batch_size,
            max_elements=MAX_ELEMENTS_FORWARD,
        )
        draws = self.draws if self.augment else 1
        stop = len(images) if stop is None else stop
        index = torch.arange(first, stop).repeat(draws)
        for part in index.split(size):
            yield self._varied(images, part, generator)

    @torch.no_grad()
    def _validate(
        self,
        network: nn.Module,
        images: Iterable[Inputs],
        goals: Iterable[list[Tensor]],
    ) -> float:
        """Return the mean divergence of a network's outputs from goals."""
        network.eval()
        return mean_error(
            (
                self.likelihood.divergence(float_outputs(network, x), goal),
                len(x),
            )
            for x, goal in zip(images, goals)
        )

    def _varied(
        self, images: CachedBatches, index: Tensor, generator: torch.Generator
    ) -> Inputs:
        """Return some images, varied anew.

        Integers, and inputs that belong together, stay as they are.
        """
        inputs = images.take(index)
        if isinstance(inputs, Arguments):
            return inputs

        def vary(batch: Tensor) -> Tensor:
            for augment in self.augment:
                batch = augment(batch, generator)
            return batch

        return map_images(vary, inputs)


#: Type of a parameter that takes the config of a refiner.
RefinerConfig = Annotated[dict, Config(NetworkRefiner, TASK_UTILS)]


def float_outputs(network: nn.Module, images: Inputs) -> list[Tensor]:
    """Return the real outputs of a network, in float32 or float64."""
    return [
        to_normal_tensor(x)
        for x in at_least_float32(real_outputs(run_float(network, images)))
    ]
