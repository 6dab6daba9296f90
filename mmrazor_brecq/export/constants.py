"""Comparing what a file holds with its network, without running either.

Images show a wrong weight only as far as it moves an output. Weights,
biases, scales, zero points and ranges are therefore compared as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Optional

import numpy as np
import onnx_ir as ir
from torch import nn

from ..layers import quant_layers
from .nodes import QUANTIZER, number, only_user, producer, users, weights
from .rewrite import CLIPS, clip_ends

#: Relative error of a product in float32, and some.
FLOAT_ERROR = 1e-6


def compare_constants(network: nn.Module, model: ir.Model) -> dict[str, str]:
    """Look for constants that are not those of the network.

    Args:
        network (nn.Module): Quantized.
        model (ir.Model): Made from it.

    Returns:
        dict[str, str]: What is wrong, by the layer's or quantizer's name,
        in the order of the graph; empty where all is right.
    """
    wrong: dict[str, str] = {}
    layers = quant_layers(network)
    for name, node in weights(model):
        for reason in _wrong_layer(layers[name], node):
            wrong.setdefault(name, reason)
    for node in model.graph:
        if QUANTIZER in node.metadata_props:
            name = node.metadata_props[QUANTIZER].rpartition('#')[0]
            for reason in _wrong_grid(network.get_submodule(name), node):
                wrong.setdefault(name, reason)
    return wrong


def dequantized(node: ir.Node) -> np.ndarray:
    """The real values that a DequantizeLinear of constants gives.

    Args:
        node (ir.Node): Its scales go along the first axis.
    """
    q, scale, zero_point = (number(x).astype('f8') for x in node.inputs)
    column = (-1, *[1] * (q.ndim - 1))
    return (q - zero_point.reshape(column)) * scale.reshape(column)


def _wrong_layer(layer: Any, node: ir.Node) -> Iterator[str]:
    quantizer = layer.weight_quantizer
    own = layer.weight.detach().double().numpy()
    found = dequantized(node)
    column = (-1, *[1] * (own.ndim - 1))
    scale = number(node.inputs[1]).astype('f8').reshape(column)
    # A scale that was made coarser for the sake of the bias, by a power of
    # two, rounds anew.
    power = np.log2(scale / quantizer.scale.double().numpy().reshape(column))
    coarser = (power > 0.5) & (np.abs(power - np.rint(power)) < FLOAT_ERROR)
    rounded = np.where(coarser, scale / 2, 0)
    yield from _apart('weight', own, found, rounded)
    if getattr(layer, 'bias', None) is not None:
        own = layer.bias.detach().double().numpy()
        for user in users(node):
            bias = _bias(user)
            if bias is not None and bias[0].shape == own.shape:
                yield from _apart('bias', own, *bias)


def _apart(
    what: str, own: np.ndarray, found: np.ndarray, rounded: np.ndarray
) -> Iterator[str]:
    """Say so if values differ by more than was rounded."""
    largest = max(float(np.abs(own).max(initial=0)), 1e-30)
    apart = np.abs(own - found)
    bound = rounded * (1 + 1e-3) + FLOAT_ERROR * (np.abs(own) + 1e-3 * largest)
    if not (apart <= bound).all():
        yield (
            f'its {what} in the file is another one; the largest difference '
            f'is {np.nanmax(apart):.3g}, of values up to {largest:.3g}'
        )


def rounded_bias(node: ir.Node) -> Optional[np.ndarray]:
    """By how much integers may move each channel's bias, None if it is real.

    Args:
        node (ir.Node): A Conv or Gemm.
    """
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    integers = producer(bias, 'DequantizeLinear')
    return None if integers is None else number(integers.inputs[1]) / 2


def _bias(node: ir.Node) -> Optional[tuple[np.ndarray, np.ndarray]]:
    """Bias of a call of a layer, and by how much it was rounded."""
    if node.op_type == 'MatMul':
        add = only_user(node.outputs[0], 'Add')
        values = [number(x) for x in add.inputs] if add is not None else []
        real = next((x for x in values if x is not None), None)
        return None if real is None else (real, np.zeros(1))
    rounded = rounded_bias(node)
    if rounded is not None:
        return dequantized(node.inputs[2].producer()), rounded
    real = number(node.inputs[2]) if len(node.inputs) > 2 else None
    return None if real is None else (real, np.zeros(1))


def _wrong_grid(quantizer: Any, node: ir.Node) -> Iterator[str]:
    """What an activation's DequantizeLinear and what comes before it say."""
    scale, zero_point = (number(x) for x in node.inputs[1:3])
    own = np.float32(quantizer.scale), int(quantizer.zero_point)
    if (np.float32(scale), int(zero_point)) != own:
        yield (
            f'its scale and zero point in the file are {float(scale):.6g} '
            f'and {int(zero_point)}, expected {own[0]:.6g} and {own[1]}'
        )
        return
    low, high = _range(node)
    least, most = quantizer.grid.range
    if low < least or high > most:
        yield (
            f'its integers in the file go from {low} to {high}, expected '
            f'{least} to {most}: a Clip is missing'
        )


def _range(node: ir.Node) -> tuple[int, int]:
    """Smallest and largest integer that come to a DequantizeLinear."""
    scale, zero_point = (number(x) for x in node.inputs[1:3])
    kind = np.iinfo(zero_point.dtype)
    low, high, integers = int(kind.min), int(kind.max), True
    value = node.inputs[0]

    def on_grid(end: float) -> float:
        with np.errstate(over='ignore'):
            return float(np.rint(np.float32(end) / scale) + zero_point)

    while before := producer(value, *CLIPS, 'MaxPool', 'QuantizeLinear'):
        if before.op_type == 'QuantizeLinear':
            if not integers:
                break
            integers = False
        ends = clip_ends(before) if before.op_type in CLIPS else None
        if ends is not None:
            if not integers:
                ends = on_grid(ends[0]), on_grid(ends[1])
            low, high = int(max(ends[0], low)), int(min(ends[1], high))
        value = before.inputs[0]
    return low, high
