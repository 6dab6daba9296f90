"""Steps for tensors that only a target wants quantized."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Optional

import onnx_ir as ir
import torch
from torch import Tensor

from ..quantizers import ActivationQuantizer
from .session import look_inside


def fit_steps(
    model: ir.Model,
    values: Sequence[ir.Value],
    batches: Sequence[Tensor],
    observer: Optional[Any] = None,
) -> dict[ir.Value, tuple[float, int]]:
    """Choose a grid of 8 bits for values of a graph.

    Args:
        model (ir.Model): As it will run, without the steps.
        values (list[ir.Value]): Of its graph.
        batches (list[Tensor]): Calibration images, as its input has them.
        observer (object, optional): Chooses the grids; by default that of
            :class:`ActivationQuantizer`.

    Returns:
        dict: Step and zero point of each value.
    """
    generator = torch.Generator().manual_seed(0)
    count = max(1, ActivationQuantizer.sample_size // len(batches))
    samples: dict[ir.Value, list[Tensor]] = {v: [] for v in values}
    for images in batches:
        found = look_inside(model, values, images)
        for value in values:
            x = found[value.name].flatten()
            at = torch.randint(len(x), (count,), generator=generator)
            samples[value] += [x[at], torch.stack(x.aminmax())]
    steps = {}
    for value, parts in samples.items():
        quantizer = ActivationQuantizer(8)
        quantizer.observer = observer or quantizer.observer
        quantizer.fit(torch.cat(parts))
        steps[value] = float(quantizer.scale), int(quantizer.zero_point)
    return steps
