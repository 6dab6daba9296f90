"""Sensitivity: what quantizing a layer, or two of a unit, does to the loss.

Layers are quantized in the float network, one at a time and two at a time,
and only the unit that they are in runs (BRECQ, sec. 3.4). What the error at
the unit's output does to the loss is read off the Fisher information there.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, Optional

import torch
from torch import nn

from ..activations import CachedBatches, Stream
from ..algorithms import BRECQ
from ..graph import Door, Unit, copy_network
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
    """A copy of a model in which all is of one width that may be.

    Args:
        model (BRECQ): Not yet prepared.
        bits (int): Width in place of the scheme's own.
        kinds (list[str]): Of ``weight``, of ``activation`` or of both.
        partition (dict, optional): In place of the model's own.

    Raises:
        ValueError: If activations are to have a width and are in float.
    """
    scheme = model.scheme
    if 'activation' in kinds and scheme.activation is None:
        raise ValueError(
            "'activation' is in `mixed_precision.kinds`, but "
            '`quantization.activation` is None: give it a width to begin with'
        )
    model = copy_network(model)
    changes: dict[str, Any] = {
        kind: dict(getattr(scheme, kind), bits=bits) for kind in kinds
    }
    model.scheme = replace(scheme, **changes)
    if partition is not None:
        model.partition = TASK_UTILS.build(partition)
    return model


class Alone(Reconstructor):
    """A reconstructor of units whose inputs are those of the float network.

    In a model that is to be used a unit makes up for the error of those
    before it; what is swapped into the float network alone must not.

    Args:
        reconstructor (Reconstructor): Any.
    """

    #: A pass over the whole network would have layers make up for others.
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
    """Measure unit by unit.

    A unit of ``n`` choices runs ``n w + n (n - 1) / 2 w^2`` times on every
    image for ``w`` widths, and once in float; the network's other units do
    not run for it.

    Args:
        teacher (nn.Module): The folded float network.
        units (list[Unit]): Its units; those of a model that was prepared
            from the same network will do.
        models (dict[int, BRECQ]): Frozen models, by their one width.
        choices (list[Choice]): What is to be measured.
        images (CachedBatches): Preprocessed images.
        error (FisherError): What an error at a unit's output means.
        seed (int): Of what the error draws.
        done (list[str]): Units that are measured already.

    Yields:
        tuple[str, Pairwise]: A unit's name and its part of the loss.
    """
    by_unit: dict[str, list[Choice]] = {}
    for choice in choices:
        if choice.unit not in done:
            by_unit.setdefault(choice.unit, []).append(choice)
    whole = {
        unit.name: replace(unit, module=teacher.get_submodule(unit.name))
        for unit in units
    }
    slices = list(map(slice, images.starts, images.starts[1:]))
    holder = nn.ModuleDict(dict(teacher=teacher))
    parts = dict(teacher.named_modules())  # While none of them is parked.
    with Stream(holder, 'teacher', list(whole.values()), images) as stream:
        here = stream.advance()
        while here is not None:
            name, inputs = here
            unit = whole[name]
            targets = CachedBatches(
                stream.run(unit.module), images.sizes, images.store
            )
            if name in by_unit:  # Of several calls the first one counts.
                # All units see the same noise.
                generator = torch.Generator().manual_seed(seed)
                error.watch(teacher, unit, images, generator)

                def loss(
                    unit: Unit = unit,
                    inputs: CachedBatches = inputs,
                    targets: CachedBatches = targets,
                ) -> float:
                    outputs = _outputs(unit, inputs)
                    found = map(error, outputs, targets.split(), slices)
                    return sum(found) / len(images)

                chosen = by_unit.pop(name)
                yield name, _measure_unit(models, chosen, loss, parts)
            del here, inputs
            here = stream.advance(targets.split())


@torch.no_grad()
def _outputs(unit: Unit, inputs: CachedBatches) -> Iterator[Any]:
    for args, kwargs in inputs.split():
        yield unit.module(*args, **kwargs)


def _measure_unit(
    models: Mapping[int, BRECQ],
    choices: Sequence[Choice],
    loss: Callable[[], float],
    parts: Mapping[str, nn.Module],
) -> Pairwise:
    """The terms of one unit: of each choice, and of what two add."""
    found = Pairwise()
    for choice in choices:
        for bits in models:
            with quantized_choices(parts, models, {choice: bits}):
                found.add(choice.name, bits, loss())
    for one, two in itertools.combinations(choices, 2):
        for a, b in itertools.product(models, models):
            with quantized_choices(parts, models, {one: a, two: b}):
                together = loss()
            found.add_pair(
                (one.name, two.name),
                (a, b),
                together - found.alone[one.name][a] - found.alone[two.name][b],
            )
    return found


@contextmanager
def quantized_choices(
    parts: Mapping[str, nn.Module],
    models: Mapping[int, BRECQ],
    bits: dict[Choice, int],
) -> Iterator[None]:
    """Within it the choices have these widths, and all else is float.

    Args:
        parts (dict[str, nn.Module]): Modules of the float network.
        models (dict[int, BRECQ]): Frozen models, by their one width.
        bits (dict): The choices and their widths.
    """
    with ExitStack() as stack:
        for choice, width in bits.items():
            model = models[width].architecture
            if choice.kind == 'weight':
                (name,) = choice.layers
                swap = _weight_of(parts[name], model.get_submodule(name))
                stack.enter_context(swap)
            else:
                hook = _input_hook(parts, model, choice)
                stack.callback(hook.remove)
        yield


@contextmanager
def _weight_of(layer: Any, frozen: Any) -> Iterator[None]:
    before = layer.weight.data
    layer.weight.data = frozen.weight.to(before)
    try:
        yield
    finally:
        layer.weight.data = before


def _input_hook(
    parts: Mapping[str, nn.Module], model: nn.Module, choice: Choice
) -> Any:
    """Quantize at the unit's door, or in front of the layer."""
    name, place = choice.layers[0], 0
    layer: Any = model.get_submodule(name)
    quantizer = layer.input_quantizer
    if choice.place is not None:
        name, place = choice.unit, choice.place
        unit: Any = model.get_submodule(name)
        if hasattr(unit, 'door'):  # Else its layers were units themselves.
            quantizer = unit.door.inputs[str(place)]
    door = Door({place: quantizer}, {place: choice.layers})
    return parts[name].register_forward_pre_hook(
        lambda module, args, kwargs: door.quantize(args, kwargs),
        with_kwargs=True,
    )
