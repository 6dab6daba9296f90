"""First scales of a unit's quantizers, from the tensors they quantize."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Callable, Optional

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from ..functional import Histogram, histogram
from ..graph import Unit
from ..objectives import Objective
from ..quantizers import ActivationQuantizer
from ..runtime.distributed import (
    copy_from_first_process,
    local_share,
    sum_over_processes,
)
from .open_parts import open_layers
from .optimize import NonFinite
from .unit import UnitData

#: Images on which the observers of a quantizer are compared.
COMPARED = 32


class _LastCall(BaseException):
    """Signal that a quantizer is called no more in this forward pass.

    It is not an ``Exception``, so that code between the layers does not
    catch it as an error.
    """


@torch.no_grad()
def fit_scales(
    unit: Unit,
    data: UnitData,
    images: int,
    batch_size: int,
    objective: Objective,
) -> dict[str, Histogram]:
    """Choose scales and zero points of all quantizers of a unit.

    The quantizers are fitted in the order of execution, each on activations
    that come from the quantized layers before it.

    Args:
        unit (Unit): The unit. Its quantizers have no scales yet.
        data (UnitData): Its activations.
        images (int): Number of images in all processes together that
            activation scales are chosen on.
        batch_size (int): Maximum number of images at a time.
        objective (Objective): Compares observers, where there are several.

    Returns:
        dict: Histograms of the activations, by name of the quantizer.

    Raises:
        NonFinite: If an activation is NaN or infinite. All quantizers have
            scales nonetheless, chosen without these elements.
    """
    for layer in open_layers(unit.module):
        layer.weight_quantizer.fit(layer.stored_weight)
    names = {
        quantizer: name
        for name, quantizer in unit.module.named_modules(prefix=unit.name)
        if isinstance(quantizer, ActivationQuantizer)
    }
    chosen = torch.arange(min(local_share(images), len(data.inputs)))
    parts = data.parts(chosen, batch_size)
    some = data.parts(chosen[:COMPARED], batch_size)
    error = partial(_output_error, unit, data, some, objective)
    broken = []
    seen = {}
    while (found := _next_input(unit, data, parts, list(names))) is not None:
        quantizer, sample = found
        finite = sample.isfinite()
        if not finite.all():
            broken.append(names[quantizer])
        values = torch.where(finite, sample, 0)
        first = values.flatten()[0]
        if (values == first).all():
            print_log(
                f'{names[quantizer]}: the activation is '
                f'{float(first):g} everywhere, in all calibration '
                'images that scales are chosen on',
                'current',
                logging.WARNING,
            )
        _fit(quantizer, values, error)
        seen[names[quantizer]] = histogram(_on_one_scale(values, quantizer))
        # Samples are allocated in the memory that activations freed.
        data.inputs.store.release_freed_memory()
    copy_from_first_process(unit.module.buffers())
    if sum_over_processes(torch.tensor(float(len(broken)))):
        where = ', '.join(broken) or 'another process'
        raise NonFinite(f'NaN or infinity at {where}')
    return seen


def _fit(
    quantizer: ActivationQuantizer,
    values: Tensor,
    error: Callable[[], float],
) -> None:
    """Choose a scale by the observer that suits the unit's output best.

    Args:
        quantizer (ActivationQuantizer): The quantizer.
        values (Tensor): A finite sample of its input.
        error (callable): Returns the error of the unit's output.
    """
    observers = quantizer.observer.choices
    if len(observers) == 1:
        quantizer.fit(values)
        return
    errors = []
    for observer in observers:
        quantizer.fit(values, observer)
        errors.append(error())
    quantizer.fit(values, observers[errors.index(min(errors))])


def _output_error(
    unit: Unit, data: UnitData, parts: Sequence[Tensor], objective: Objective
) -> float:
    """Return the error of a unit's output, infinite if it has NaN."""
    total = torch.zeros((), dtype=torch.float64)
    for index in parts:
        args, kwargs = data.inputs.take(index)
        output, target = unit.module(*args, **kwargs), data.targets.take(index)
        error = objective.rough_error(unit, output, target, index)
        total += len(index) * error.cpu()
    return float(sum_over_processes(total).nan_to_num(math.inf))


def _on_one_scale(values: Tensor, quantizer: ActivationQuantizer) -> Tensor:
    """Return values as they would lie on the mean of all heads' scales.

    Args:
        values (Tensor): A row for each head, or those of one scale.
        quantizer (ActivationQuantizer): Their quantizer, fitted.
    """
    scale = quantizer.scale
    if scale.numel() == 1:
        return values
    return values * (scale.mean() / scale).view(-1, 1)


def _next_input(
    unit: Unit,
    data: UnitData,
    parts: Sequence[Tensor],
    quantizers: Sequence[ActivationQuantizer],
) -> Optional[tuple[ActivationQuantizer, Tensor]]:
    """Return the first quantizer without a scale and a sample of its input.

    The smallest and the largest element of each row are in the sample. The
    first part of the images shows how often the quantizer is called in a
    pass. Passes of the other parts end with its last call.
    """
    waiting = [q for q in quantizers if not q.active]
    if not waiting:
        return None
    found: list[ActivationQuantizer] = []
    samples: list[Tensor] = []
    extremes: list[Tensor] = []
    calls = start = 0

    def collect(quantizer: nn.Module, args: tuple[Tensor, ...]) -> None:
        assert isinstance(quantizer, ActivationQuantizer)
        if found and quantizer is not found[0]:
            return
        found[:] = [quantizer]
        extremes.extend(quantizer.rows(args[0]).aminmax(dim=1))
        samples.append(quantizer.sample(args[0], len(samples), len(parts)))
        if len(samples) - start == calls:
            raise _LastCall

    hooks = [q.register_forward_pre_hook(collect) for q in waiting]
    try:
        for index in parts:
            args, kwargs = data.inputs.take(index)
            start = len(samples)
            with suppress(_LastCall):
                unit.module(*args, **kwargs)
            calls = calls or len(samples)
    finally:
        for hook in hooks:
            hook.remove()
    if not found:
        return None
    ends = torch.stack(torch.stack(extremes).aminmax(dim=0), 1)
    ends = ends.view(*samples[0].shape[:-1], 2)
    return found[0], torch.cat([*samples, ends], -1)
