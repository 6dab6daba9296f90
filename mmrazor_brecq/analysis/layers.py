"""How the weights and inputs of layers lie on their grids."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Optional

import torch
from torch import Tensor, nn

from ..algorithms import BRECQ
from ..functional import Histogram, histogram, to_rows
from ..graph import InputQuantizer, input_quantizers
from ..layers import QuantLayer, quant_layers

#: Elements of a weight that are looked at.
MOST_ELEMENTS = 2**20

#: Description of a layer or a tensor in plain Python, as JSON has it.
Details = dict[str, Any]


@torch.no_grad()
def layer_details(
    model: BRECQ, teacher: nn.Module, histograms: Mapping[str, Histogram]
) -> list[Details]:
    """Describe the layers and products of a model, in order of execution.

    Args:
        model (BRECQ): A quantized model.
        teacher (nn.Module): Its float network.
        histograms (dict): Histograms of activations, by name of the
            quantizer, as in the reports of units.

    Returns:
        list[dict]: Of each layer its ``name``, ``unit``, ``kind``, number of
        ``parameters`` of the weight, and two descriptions, ``weight`` and
        ``input``, which is None if the input is float. Both have ``bits``
        and the histogram ``low``, ``high`` and ``counts`` in integers of the
        grid, which reaches ``from`` one integer ``to`` another; ``clipped``
        is the fraction of elements beyond it. A weight has its
        ``noise_db``, the signal to noise ratio, and ``lost_channels``, the
        number of output channels whose elements all became zero. A product
        of activations has None as ``weight``, its left operand as ``input``
        and its right one as ``right``; where each head has a scale, values
        are as on that of all heads together.
    """
    layers = quant_layers(model.architecture)
    inputs: dict[str, list[InputQuantizer]] = {}
    for source in input_quantizers(model.architecture):
        for name in source.layers:
            inputs.setdefault(name, []).append(source)
    found = []
    for unit in model.units:
        for name in unit.layers:
            sources = [_input(x, histograms) for x in inputs.get(name, ())]
            entry: Details = dict(name=name, unit=unit.name)
            if name in layers:
                weight = teacher.get_parameter(f'{name}.weight')
                entry.update(
                    kind=type(layers[name]).__bases__[1].__name__,
                    parameters=layers[name].stored_weight.numel(),
                    weight=_weight(layers[name], weight),
                    input=sources[0] if sources else None,
                )
            elif len(sources) == 2:
                left, right = sources
                entry.update(kind='product', parameters=0, weight=None)
                entry.update(input=left, right=right)
            else:  # With activations in float there is nothing to describe.
                continue
            found.append(entry)
    return found


def _weight(layer: QuantLayer, weight: Tensor) -> Details:
    """Describe a weight, given the float one."""
    quantizer = layer.weight_quantizer
    integers = to_rows(layer.stored_weight)
    zero_point = quantizer.zero_point[:, None]
    rows = to_rows(weight, layer.stored_weight)
    empty = (integers == zero_point).all(1) & (rows != 0).any(1)
    # Rows at equal distances stand for the whole.
    step = -(-integers.numel() // MOST_ELEMENTS)
    scale = quantizer.scale[:, None].expand(len(rows), 1)[::step]
    offset = zero_point.expand(len(rows), 1)[::step]
    rows = rows[::step].float()
    values = (integers[::step].float() - offset) * scale
    signal, noise = rows.square().sum(), (rows - values).square().sum()
    return dict(
        bits=quantizer.grid.bits,
        **_on_grid(histogram(rows / scale + offset), quantizer.grid.range),
        noise_db=decibels(float(signal), float(noise)),
        lost_channels=int(empty.sum()),
    )


def _input(
    source: InputQuantizer, histograms: Mapping[str, Histogram]
) -> Details:
    """Describe an activation, given the histogram of its real values."""
    quantizer = source.quantizer
    found = histograms.get(source.name)
    scale = float(quantizer.scale.mean())
    zero = float(quantizer.zero_point)
    details: Details = dict(
        quantizer=source.name,
        bits=quantizer.grid.bits,
        symmetric=quantizer.grid.symmetric,
        scale=scale,
    )
    if found is not None and quantizer.uniform:
        on_grid = dict(
            found,
            low=found['low'] / scale + zero,
            high=found['high'] / scale + zero,
        )
        details.update(_on_grid(on_grid, quantizer.grid.range))
    return details


def _on_grid(found: Mapping[str, Any], ends: tuple[int, int]) -> Details:
    """Describe a histogram in integers of a grid between two ends."""
    low, high, counts = found['low'], found['high'], found['counts']
    size = (high - low) / len(counts)
    start, stop = ends[0] - 0.5, ends[1] + 0.5
    inside = 0.0
    for i, count in enumerate(counts):
        left = low + i * size
        overlap = min(left + size, stop) - max(left, start)
        # A bin without extent is inside or outside as a whole.
        part = overlap / size if size > 0 else float(start <= left <= stop)
        inside += count * min(1.0, max(0.0, part))
    return {
        'from': ends[0],
        'to': ends[1],
        'low': round(low, 3),
        'high': round(high, 3),
        'counts': counts,
        'clipped': round(1 - inside / max(1, sum(counts)), 6),
    }


def decibels(signal: float, noise: float) -> Optional[float]:
    """Return the ratio of two energies in dB, None if one is zero."""
    if not signal or not noise:
        return None
    return round(10 * math.log10(signal / noise), 2)
