"""Quantize tensors that only a target wants quantized.

This is the one change of the function that the network computes: these
tensors are real in torch. Their scales come from calibration images, and what
that costs is measured when the file is verified.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from ..quantizers import ActivationQuantizer, Observer
from .nodes import Editor, eight_bits, only_user, users, weights
from .rewrite import CLIPS
from .session import look_inside
from .targets import Target


def missing_quantizers(model: ir.Model, target: Target) -> list[ir.Value]:
    """Find outputs that the target wants quantized, and the network does not.

    Args:
        model (ir.Model): After :func:`quantize_early`.
        target (Target): What the file is for.

    Returns:
        list[ir.Value]: Outputs of operators, or of the last clip behind each.
    """
    found = []
    clips = [x for x in CLIPS if x in target.fuses]
    for _, weight in weights(model):
        for node in users(weight):
            if node.op_type not in target.quantized_outputs:
                continue
            if eight_bits(node.inputs[0]) is None:
                continue
            value = node.outputs[0]
            while clip := only_user(value, *clips):
                value = clip.outputs[0]
            quantized = only_user(value, 'QuantizeLinear') is not None
            if not quantized and not value.is_graph_output():
                found.append(value)
    return found


def choose_scales(
    model: ir.Model,
    values: Sequence[ir.Value],
    batches: Sequence[Tensor],
    observer: Observer,
) -> dict[ir.Value, tuple[float, int]]:
    """Choose 8-bit scales and zero points from calibration images.

    Args:
        model (ir.Model): As it will run, before :func:`add_quantizers`.
        values (list[ir.Value]): Tensors of its graph.
        batches (list[Tensor]): Calibration images, in the form that the file
            takes.
        observer (Observer): Chooses the scales.

    Returns:
        dict: Scale and zero point (0 to 255) of each tensor.
    """
    generator = torch.Generator().manual_seed(0)
    count = max(1, ActivationQuantizer.sample_size // len(batches))
    samples: dict[ir.Value, list[Tensor]] = {v: [] for v in values}
    for images in batches:
        found = look_inside(model, values, images)
        for value in values:
            x = found[value.name].flatten()
            index = torch.randint(len(x), (count,), generator=generator)
            samples[value] += [x[index], torch.stack(x.aminmax())]
    scales = {}
    for value, parts in samples.items():
        quantizer = ActivationQuantizer(8)
        quantizer.observer = observer
        quantizer.fit(torch.cat(parts))
        scales[value] = float(quantizer.scale), int(quantizer.zero_point)
    return scales


def add_quantizers(
    model: ir.Model, scales: Mapping[ir.Value, tuple[float, int]]
) -> None:
    """Put QuantizeLinear and DequantizeLinear behind tensors.

    Args:
        model (ir.Model): Changed in place.
        scales (dict): Scale and zero point (0 to 255) of each tensor.
    """
    editor = Editor(model)
    for value, (scale, zero_point) in scales.items():
        uses = list(value.uses())
        grid = [
            editor.constant(f'{value.name}_scale', np.float32(scale)),
            editor.constant(f'{value.name}_zero_point', np.uint8(zero_point)),
        ]
        q = editor.node(
            'QuantizeLinear',
            [value, *grid],
            f'{value.name}_quantized',
            ir.DataType.UINT8,
            value,
        )
        out = editor.dequantize(q, grid, f'{value.name}_dequantized', q)
        for use in uses:
            use.node.replace_input_with(use.idx, out)
