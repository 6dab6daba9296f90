"""Sensitivity: what quantizing a layer, or two of a unit, does to the loss.

Layers are quantized in the float network, one at a time and two at a time,
and only their unit runs (BRECQ, sec. 3.4). The Fisher information at the
unit's output says what the error there does to the loss.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Optional

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from ..activations import CachedBatches, Stream
from ..algorithms import BRECQ
from ..functional import Nested
from ..graph import Door, Unit, copy_network
from ..layers import MatrixProduct, QuantLayer
from ..reconstruction import Reconstructor, UnitData, UnitReport
from ..registry import TASK_UTILS
from .choices import Choice
from .errors import FisherError
from .pairwise import Pairwise


def uniform(
    model: BRECQ,
    bits: int,
    kinds: Collection[str],
    partition: Optional[dict] = None,
) -> BRECQ:
    """Copy a model, and give all layers the same bits.

    Layers whose bits the config decides keep theirs.

    Args:
        model (BRECQ): Not yet prepared.
        bits (int): Bits in place of those of the scheme, 2 to 8.
        kinds (list[str]): What gets them: ``weight``, ``activation`` or
            both.
        partition (dict, optional): Config in place of the model's partition.

    Raises:
        ValueError: If activations shall have bits and are in float.
    """
    scheme = model.scheme
    if 'weight' in kinds:
        scheme = replace(scheme, weight=dict(scheme.weight, bits=bits))
    if 'activation' in kinds:
        if scheme.activation is None:
            raise ValueError(
                "'activation' is in `mixed_precision.kinds`, but "
                '`quantization.activation` is None: give it bits to begin '
                'with'
            )
        scheme = replace(scheme, activation=dict(scheme.activation, bits=bits))
    model = copy_network(model)
    model.scheme = scheme
    if partition is not None:
        model.partition = TASK_UTILS.build(partition)
    return model


class OnFloatInputs(Reconstructor):
    """A reconstructor that gives units the inputs of the float network.

    Otherwise a unit makes up for the errors of those before it, and must not
    if it is put into the float network by itself.

    Args:
        reconstructor (Reconstructor): Any.
    """

    #: A pass over the whole network would make layers depend on others.
    refiner = None

    def __init__(self, reconstructor: Reconstructor) -> None:
        super().__init__(
            reconstructor.objective,
            reconstructor.batch_size,
            reconstructor.fit_images,
        )
        self.autocast = reconstructor.autocast
        self.reconstructor = reconstructor

    def __call__(
        self, unit: Unit, data: UnitData, generator: torch.Generator
    ) -> UnitReport:
        """Reconstruct one unit; see :class:`Reconstructor`."""
        data = replace(data, inputs=data.float_inputs)
        return self.reconstructor(unit, data, generator)


def measure(
    teacher: nn.Module,
    units: Sequence[Unit],
    models: Mapping[int, BRECQ],
    choices: Sequence[Choice],
    images: CachedBatches,
    error: FisherError,
    seed: int = 0,
    done: Collection[str] = (),
) -> Iterator[tuple[str, Pairwise]]:
    """Measure the loss unit by unit.

    A unit of ``n`` choices runs ``n w + n (n - 1) / 2 w^2`` times on every
    image for ``w`` bit widths, and once in float; the network's other units
    do not run for it.

    Args:
        teacher (nn.Module): The folded float network.
        units (list[Unit]): Its units, or those of a model that was prepared
            from the same network.
        models (dict[int, BRECQ]): Frozen uniform models, by their bits.
        choices (list[Choice]): What is measured.
        images (CachedBatches): Preprocessed images.
        error (FisherError): Estimates the loss from an error at a unit's
            output.
        seed (int): Of the randomness of ``error``.
        done (list[str]): Names of units that are left out.

    Yields:
        tuple[str, Pairwise]: A unit's name and its part of the loss.
    """
    by_unit: dict[str, list[Choice]] = {}
    for choice in choices:
        if choice.unit not in done:
            by_unit.setdefault(choice.unit, []).append(choice)
    of_teacher = {
        unit.name: replace(unit, module=teacher.get_submodule(unit.name))
        for unit in units
    }
    holder = nn.ModuleDict(dict(teacher=teacher))
    # Before the stream replaces some of them.
    modules = dict(teacher.named_modules())
    with Stream(
        holder, 'teacher', list(of_teacher.values()), images
    ) as stream:
        here = stream.advance()
        while here is not None:
            name, inputs = here
            unit = of_teacher[name]
            targets = CachedBatches(
                stream.run(unit.module), images.sizes, images.store
            )
            # If a unit is called several times, the first call counts.
            chosen = by_unit.pop(name, None)
            if chosen is not None:
                # All units see the same noise.
                generator = torch.Generator().manual_seed(seed)
                error.watch(teacher, unit, images, generator)
                loss = partial(_mean_loss, unit, inputs, targets, error)
                yield name, _measure_unit(models, chosen, loss, modules)
                del loss  # It holds the inputs.
            del here, inputs
            here = stream.advance(targets.split())


def _mean_loss(
    unit: Unit,
    inputs: CachedBatches,
    targets: CachedBatches,
    error: FisherError,
) -> float:
    """Return the loss of a unit as it is now, in nats an image.

    Args:
        unit (Unit): The unit, something in it quantized.
        inputs (CachedBatches): Its arguments.
        targets (CachedBatches): Its float outputs.
        error (FisherError): Has the gradients of the unit.
    """
    slices = map(slice, targets.starts, targets.starts[1:])
    losses = map(error, _outputs(unit, inputs), targets.split(), slices)
    return sum(losses) / len(targets)


@torch.no_grad()
def _outputs(unit: Unit, inputs: CachedBatches) -> Iterator[Nested]:
    """Yield the outputs of a unit, batch by batch."""
    for args, kwargs in inputs.split():
        yield unit.module(*args, **kwargs)


def _measure_unit(
    models: Mapping[int, BRECQ],
    choices: Sequence[Choice],
    loss: Callable[[], float],
    modules: Mapping[str, nn.Module],
) -> Pairwise:
    """Return the terms of one unit: of each choice, and what two add.

    Args:
        models (dict[int, BRECQ]): Frozen uniform models, by their bits.
        choices (list[Choice]): Those of the unit.
        loss (callable): Returns the loss of the unit as it is now.
        modules (dict[str, nn.Module]): Modules of the float network.
    """
    found = Pairwise()
    for choice in choices:
        for bits in models:
            with quantized_choices(modules, models, {choice: bits}):
                found.add(choice.name, bits, loss())
    for one, two in itertools.combinations(choices, 2):
        for a, b in itertools.product(models, models):
            with quantized_choices(modules, models, {one: a, two: b}):
                together = loss()
            found.add_pair(
                (one.name, two.name),
                (a, b),
                together - found.alone[one.name][a] - found.alone[two.name][b],
            )
    return found


@contextmanager
def quantized_choices(
    modules: Mapping[str, nn.Module],
    models: Mapping[int, BRECQ],
    bits: Mapping[Choice, int],
) -> Iterator[None]:
    """Quantize some choices of the float network, within the context.

    Args:
        modules (dict[str, nn.Module]): Modules of the float network.
        models (dict[int, BRECQ]): Frozen uniform models, by their bits.
        bits (dict[Choice, int]): Bits of some choices; all else stays in
            float.
    """
    with ExitStack() as stack:
        for choice, count in bits.items():
            model = models[count].architecture
            if choice.kind == 'weight':
                (name,) = choice.layers
                stack.enter_context(
                    _quantized_weight(modules[name], _layer(model, name))
                )
            else:
                hook = _quantize_input(modules, model, choice)
                stack.callback(hook.remove)
        yield


def _layer(model: nn.Module, name: str) -> QuantLayer:
    """Return a quantized layer of a model."""
    layer = model.get_submodule(name)
    assert isinstance(layer, QuantLayer)
    return layer


@contextmanager
def _quantized_weight(layer: nn.Module, frozen: QuantLayer) -> Iterator[None]:
    """Give a float layer the weight of a frozen one, within the context."""
    parameter = layer.get_parameter('weight')
    before = parameter.data
    parameter.data = frozen.weight.to(before)
    try:
        yield
    finally:
        parameter.data = before


def _quantize_input(
    modules: Mapping[str, nn.Module], model: nn.Module, choice: Choice
) -> RemovableHandle:
    """Add a hook that quantizes an activation, at the door or at a layer.

    Args:
        modules (dict[str, nn.Module]): Modules of the float network.
        model (nn.Module): The frozen network whose quantizer is taken.
        choice (Choice): The activation.
    """
    name, position = choice.layers[0], 0
    product = model.get_submodule(name)
    if isinstance(product, MatrixProduct):
        sides = product.left_quantizer, product.right_quantizer
        return Door(dict(enumerate(sides)), {}).attach(modules[name])
    quantizer: nn.Module = _layer(model, name).input_quantizer
    if choice.position is not None:
        name, position = choice.unit, choice.position
        door = getattr(model.get_submodule(name), 'door', None)
        # There is none where the layers were units themselves.
        if isinstance(door, Door):
            quantizer = door.inputs[str(position)]
    door = Door({position: quantizer}, {position: choice.layers})
    return door.attach(modules[name])
