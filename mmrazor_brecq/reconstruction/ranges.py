"""The scales of a unit's quantizers, from what its layers see."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Optional

import torch
from mmengine.logging import print_log
from torch import Tensor

from ..graph import Unit
from ..quantizers import ActivationQuantizer
from ..runtime.distributed import (
    copy_from_first_process,
    local_share,
    sum_over_processes,
)
from .open_parts import open_layers
from .optimize import NonFinite
from .unit import UnitData


class _Seen(BaseException):
    """A quantizer will get nothing more in this pass.

    No error: code between the layers shall not catch it as one.
    """


@torch.no_grad()
def fit_scales(
    unit: Unit, data: UnitData, images: int, batch_size: int
) -> None:
    """Choose the scales of all the unit's quantizers.

    Activations are those that the quantized layers before them give.

    Args:
        unit (Unit): The unit, its quantizers new.
        data (UnitData): Its activations.
        images (int): Images that activation scales are chosen on, those of
            all processes together.
        batch_size (int): Images at a time.

    Raises:
        NonFinite: If an activation is no finite number; all quantizers have
            scales nonetheless.
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
    broken = []
    while (found := _next_input(unit, data, parts, list(names))) is not None:
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
        data.inputs.store.release_freed_memory()
    copy_from_first_process(unit.module.buffers())
    if sum_over_processes(torch.tensor(float(len(broken)))):
        where = ', '.join(broken) or 'another process'
        raise NonFinite(f'NaN or infinity at {where}')


def _next_input(
    unit: Unit,
    data: UnitData,
    parts: Sequence[Tensor],
    quantizers: Sequence[ActivationQuantizer],
) -> Optional[tuple[ActivationQuantizer, Tensor]]:
    """Return the first quantizer without a scale, and a sample of its input.

    The least and the greatest value are among the sample, once each. The
    first part of the images tells how often it is called, and the others
    stop there.
    """
    waiting = [q for q in quantizers if not q.active]
    found: list[ActivationQuantizer] = []
    samples: list[Tensor] = []
    ends: list[Tensor] = []
    calls = begun = 0

    def look(quantizer: Any, args: Any) -> None:
        if quantizer in (found or [quantizer]):
            found[:] = [quantizer]
            ends.extend(args[0].aminmax())
            samples.append(quantizer.sample(args[0], len(samples), len(parts)))
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
