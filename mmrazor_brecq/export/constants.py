"""Compare the constants of a file with its network, without running either.

Images show a wrong weight only as far as it moves an output. Weights,
biases, scales, zero points and ranges are therefore compared directly.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Optional

import numpy as np
import onnx_ir as ir
from torch import nn

from ..layers import QuantLayer, quant_layers
from ..quantizers import ActivationQuantizer
from .nodes import (
    QUANTIZER,
    array_of,
    bias_of,
    by_channel,
    is_constant,
    only_user,
    producer,
    users,
    weights,
)
from .rewrite import CLIPS, clip_bounds

#: Relative error of a product in float32, rounded up.
FLOAT_ERROR = 1e-6


def compare_constants(network: nn.Module, model: ir.Model) -> dict[str, str]:
    """Find the constants of a file that differ from those of the network.

    Args:
        network (nn.Module): Quantized.
        model (ir.Model): Made from it.

    Returns:
        dict[str, str]: What is wrong, by the name of the layer or the
        quantizer, in the order of the graph; empty if all are right.
    """
    wrong: dict[str, str] = {}
    layers = quant_layers(network)
    for name, node in weights(model):
        for reason in _layer_errors(layers[name], node):
            wrong.setdefault(name, reason)
    for node in model.graph:
        if QUANTIZER in node.metadata_props:
            name = node.metadata_props[QUANTIZER].rpartition('#')[0]
            quantizer = network.get_submodule(name)
            assert isinstance(quantizer, ActivationQuantizer)
            for reason in _grid_errors(quantizer, node):
                wrong.setdefault(name, reason)
    return wrong


def dequantized(node: ir.Node) -> np.ndarray:
    """Return the real values of a DequantizeLinear of constants.

    Args:
        node (ir.Node): Its scales go along the first axis.
    """
    q, scale, zero_point = (array_of(x).astype('f8') for x in node.inputs)
    return (q - by_channel(zero_point, q.ndim)) * by_channel(scale, q.ndim)


def rounded_bias(node: ir.Node) -> Optional[np.ndarray]:
    """Return how far integers may move each channel's bias.

    Args:
        node (ir.Node): A Conv or Gemm.

    Returns:
        numpy.ndarray: Half a scale for each channel; None where the bias is
        real.
    """
    integers = producer(bias_of(node), 'DequantizeLinear')
    return None if integers is None else array_of(integers.inputs[1]) / 2


def _layer_errors(layer: QuantLayer, node: ir.Node) -> Iterator[str]:
    """Yield what is wrong with a layer's weight or bias."""
    expected = layer.weight.detach().double().numpy()
    scale = array_of(node.inputs[1]).astype('f8')
    ratio = scale / layer.weight_quantizer.scale.double().numpy()
    power = np.log2(ratio)
    # The export makes a scale coarser, by a power of two, where the bias
    # would not fit otherwise; only then are weights rounded again.
    coarser = (power > 0.5) & (np.abs(power - np.rint(power)) < FLOAT_ERROR)
    rounded = by_channel(np.where(coarser, scale / 2, 0), expected.ndim)
    yield from _value_errors('weight', expected, dequantized(node), rounded)
    bias = getattr(layer, 'bias', None)
    if bias is not None:
        expected = bias.detach().double().numpy()
        for call in users(node):
            found = _bias(call)
            if found is not None and found[0].shape == expected.shape:
                yield from _value_errors('bias', expected, *found)


def _value_errors(
    kind: str, expected: np.ndarray, found: np.ndarray, rounded: np.ndarray
) -> Iterator[str]:
    """Yield a message if values differ by more than they were rounded."""
    largest = max(float(np.abs(expected).max(initial=0)), 1e-30)
    difference = np.abs(expected - found)
    bound = rounded * (1 + 1e-3) + FLOAT_ERROR * (
        np.abs(expected) + 1e-3 * largest
    )
    if not (difference <= bound).all():
        yield (
            f'its {kind} in the file is another one; the largest difference '
            f'is {np.nanmax(difference):.3g}, of values up to {largest:.3g}'
        )


def _bias(call: ir.Node) -> Optional[tuple[np.ndarray, np.ndarray]]:
    """Return the bias of a call and how far it was rounded, if it has one."""
    if call.op_type == 'MatMul':
        add = only_user(call.outputs[0], 'Add')
        terms = add.inputs if add is not None else []
        bias = next((x for x in terms if is_constant(x)), None)
    else:
        bias = bias_of(call)
        integers = producer(bias, 'DequantizeLinear')
        if integers is not None:
            return dequantized(integers), array_of(integers.inputs[1]) / 2
    return (array_of(bias), np.zeros(1)) if is_constant(bias) else None


def _grid_errors(
    quantizer: ActivationQuantizer, node: ir.Node
) -> Iterator[str]:
    """Yield what is wrong with an activation's scale, zero point or range.

    Args:
        quantizer (ActivationQuantizer): Of the network.
        node (ir.Node): Its DequantizeLinear.
    """
    scale, zero_point = (array_of(x) for x in node.inputs[1:3])
    real = quantizer.scale.numpy()
    if real.size > 1:
        yield from _factor_errors(real, node)
        real = np.ones(())
    expected = np.float32(real), int(quantizer.zero_point)
    if (np.float32(scale), int(zero_point)) != expected:
        yield (
            f'its scale and zero point in the file are {float(scale):.6g} and '
            f'{int(zero_point)}, expected {expected[0]:.6g} and {expected[1]}'
        )
        return
    low, high = _integer_range(node)
    lowest, highest = quantizer.grid.range
    if low < lowest or high > highest:
        yield (
            f'its integers in the file go from {low} to {high}, expected '
            f'{lowest} to {highest}: a Clip is missing'
        )


def _factor_errors(scales: np.ndarray, node: ir.Node) -> Iterator[str]:
    """Yield what is wrong with the scales that an activation is divided by.

    Args:
        scales (numpy.ndarray): Of the network, H x 1 x 1.
        node (ir.Node): The DequantizeLinear behind.
    """
    value = node.inputs[0]
    while before := producer(value, *CLIPS, 'QuantizeLinear'):
        value = before.inputs[0]
    divided = producer(value, 'Div')
    divisor = divided.inputs[1] if divided is not None else None
    if not is_constant(divisor):
        yield 'it is not divided by the scales of its heads in the file'
    elif not np.array_equal(array_of(divisor), scales):
        yield 'the scales of its heads in the file are others'


def _integer_range(node: ir.Node) -> tuple[int, int]:
    """Return the smallest and largest integer that a DequantizeLinear gets.

    It follows the clips before the node, of integers and of real values.
    """
    scale, zero_point = (array_of(x) for x in node.inputs[1:3])
    info = np.iinfo(zero_point.dtype)
    low, high, in_integers = int(info.min), int(info.max), True
    value = node.inputs[0]

    def on_grid(bound: float) -> float:
        with np.errstate(over='ignore'):
            return float(np.rint(np.float32(bound) / scale) + zero_point)

    while before := producer(value, *CLIPS, 'MaxPool', 'QuantizeLinear'):
        if before.op_type == 'QuantizeLinear':
            if not in_integers:
                break
            in_integers = False
        bounds = clip_bounds(before) if before.op_type in CLIPS else None
        if bounds is not None:
            if not in_integers:
                bounds = on_grid(bounds[0]), on_grid(bounds[1])
            low, high = int(max(bounds[0], low)), int(min(bounds[1], high))
        value = before.inputs[0]
    return low, high
