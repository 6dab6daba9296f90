"""Turn biases into the 32-bit integers that a target adds."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from .nodes import (
    Editor,
    array_of,
    bias_of,
    by_channel,
    eight_bits,
    is_constant,
    users,
    weights,
)

#: Integers of a bias stay below this, a margin of two to 32 bits.
LARGEST_INTEGER = 2**30


def integer_biases(model: ir.Model, per_tensor: Collection[str] = ()) -> None:
    """Store biases as integers whose scale is that of input times weight.

    Args:
        model (ir.Model): Changed in place, after :func:`store_weights`.
        per_tensor (list[str]): Layers whose weights have one scale alone.
    """
    editor = Editor(model)
    for name, weight in weights(model):
        if weight.inputs[0].dtype != ir.DataType.INT8:
            continue
        calls = []
        for node in users(weight):
            quantized = eight_bits(node.inputs[0])
            bias = bias_of(node)
            if quantized is not None and is_constant(bias):
                input_scale = array_of(quantized.inputs[1])
                calls.append((node, array_of(bias), input_scale))
        if calls:
            bounds = [
                np.abs(bias).astype('f8')
                / (float(input_scale) * LARGEST_INTEGER)
                for _, bias, input_scale in calls
            ]
            _rescale(editor, weight, np.max(bounds, 0), name in per_tensor)
        for node, bias, input_scale in calls:
            scale = (array_of(weight.inputs[1]) * input_scale).astype('f4')
            _store_integers(editor, node, bias, scale)


def _store_integers(
    editor: Editor, node: ir.Node, bias: np.ndarray, scale: np.ndarray
) -> None:
    """Give one call of a layer its bias as integers.

    Args:
        editor (Editor): Of the graph.
        node (ir.Node): The Conv or Gemm.
        bias (numpy.ndarray): Real, C values.
        scale (numpy.ndarray): C values.
    """
    name = node.inputs[2].name
    integers = editor.constant(
        f'{name}_integers', np.rint(bias / scale.astype('f8')).astype('i4')
    )
    grid = [
        editor.constant(f'{name}_scale', scale),
        editor.constant(f'{name}_zero_point', np.zeros(len(bias), 'i4')),
    ]
    out = editor.dequantize(
        integers, grid, f'{name}_dequantized', node.inputs[0], axis=0
    )
    out.shape = integers.shape
    node.replace_input_with(2, out)


def _rescale(
    editor: Editor, weight: ir.Node, smallest: np.ndarray, alike: bool
) -> None:
    """Divide a weight's scales by powers of two, as far as 8 bits allow.

    A bias at a finer scale loses less. Where a channel's weights are so
    small that its bias would not fit into 32 bits, its scale becomes coarser
    instead, which rounds the weights by less than the bias could show.

    Args:
        editor (Editor): Of the graph.
        weight (ir.Node): Its DequantizeLinear, in ``int8``.
        smallest (numpy.ndarray): The smallest scale of each channel at
            which the bias fits.
        alike (bool): Whether all channels keep one scale.
    """
    q, scale, zero_point = (array_of(x).astype('f8') for x in weight.inputs)
    centered = (q - by_channel(zero_point, q.ndim)).reshape(len(q), -1)
    largest = np.maximum(np.abs(centered).max(1), 1)
    # Negative where the zero point does not fit in: such a channel keeps it.
    finer = np.floor(np.log2(127 / largest))
    coarsest = np.floor(np.log2(scale / np.maximum(smallest, 1e-300)))
    if alike:
        finer, coarsest = (np.full_like(x, x.min()) for x in (finer, coarsest))
    power = np.minimum(finer, coarsest)
    same = (power == 0) | ((finer < 0) & (coarsest >= 0))
    moved = np.clip(np.rint(centered * 2 ** power[:, None]), -128, 127)
    integers = np.where(same[:, None], q.reshape(centered.shape), moved)
    content = (
        integers.reshape(q.shape).astype('i1'),
        np.where(same, scale, scale * 2.0**-power).astype('f4'),
        np.where(same, zero_point, 0).astype('i1'),
    )
    for position, value in enumerate(content):
        name = weight.inputs[position].name
        weight.replace_input_with(
            position, editor.constant(f'{name}_rescaled', value)
        )
