"""Rewriting a traced network into the form that a target runs best.

Every pass but one leaves the function as it is: :func:`add_steps` rounds
tensors that the network in torch leaves in float, with steps from
calibration, and what that does is measured when the file is verified.
"""

from __future__ import annotations

from typing import Any, Optional

import numpy as np
import onnx_ir as ir

from .nodes import (
    CALL,
    LAYER,
    QUANTIZER,
    Editor,
    number,
    only_user,
    producer,
    users,
    weights,
)
from .targets import PACKED, Target

#: Operators that keep the order of numbers: clipping and choosing may as
#: well be done on integers.
CLIPS = ('Relu', 'Clip')

PACKED_TYPES = {2: ir.DataType.INT2, 4: ir.DataType.INT4}


def store_weights(
    model: ir.Model, target: Target, widths: dict[str, int], pack: bool
) -> dict[str, int]:
    """Put the weights into containers that the target takes.

    Packed types keep the zero point. In ``int8`` it is taken off the
    integers where all of them still fit, as those of fewer than eight bits
    always do: then no runtime has to.

    Args:
        model (ir.Model): Changed in place.
        target (Target): What it is for.
        widths (dict[str, int]): Bits of every layer's weight.
        pack (bool): Whether to pack.

    Returns:
        dict[str, int]: Bits that each layer's weight takes in the file.
    """
    editor, taken = Editor(model), {}
    for name, node in weights(model):
        q, _, zero_point = node.inputs
        integers = number(q).astype(np.int16)
        offset = number(zero_point).astype(np.int16)
        taken[name] = width = target.width(widths[name], pack)
        if width < 8:
            kind = PACKED_TYPES[width]
            opset = model.graph.opset_imports
            opset[''] = max(opset[''], PACKED[width])
            model.ir_version = max(model.ir_version or 10, 13 * (width == 2))
        else:
            kind = None
            column = offset.reshape(-1, *[1] * (integers.ndim - 1))
            if np.abs(integers - column).max() <= 127:
                integers, offset = integers - column, 0 * offset
            integers, offset = (x.astype(np.int8) for x in (integers, offset))
        for place, value in ((0, integers), (2, offset)):
            old = node.inputs[place]
            new = editor.constant(f'{old.name}_', value, kind)
            node.replace_input_with(place, new)
            if not old.uses():
                del model.graph.initializers[old.name]
                new.name = old.name
    return taken


def quantize_early(model: ir.Model) -> None:
    """Move Relu, Clip and MaxPool behind the QuantizeLinear after them.

    They keep the order of numbers, so it is the same on the integers, and
    the operator before them can put out integers. Clips become one Clip,
    and none where the type of the integers clips by itself.

    Args:
        model (ir.Model): Changed in place.
    """
    editor = Editor(model)
    for node in list(model.graph):
        if node.op_type == 'QuantizeLinear':
            _quantize_early(editor, node)
    editor.graph.sort()


def _quantize_early(editor: Editor, node: ir.Node) -> None:
    scale, zero_point = number(node.inputs[1]), number(node.inputs[2])
    if scale is None or scale.ndim or not _is_worth_it(node):
        return
    kind = np.iinfo(zero_point.dtype)
    low, high = int(kind.min), int(kind.max)
    while True:
        value = node.inputs[0]
        before = producer(value, *CLIPS, 'MaxPool')
        if before is None or only_user(value) != node:
            break
        if before.op_type == 'MaxPool':
            if any(out.uses() for out in before.outputs[1:]):
                break
            _pool_integers(node, before)
            continue
        ends = clip_ends(before)
        if ends is None:
            break
        grid = [np.rint(np.float32(end) / scale) + zero_point for end in ends]
        low, high = int(max(grid[0], low)), int(min(grid[1], high))
        node.replace_input_with(0, before.inputs[0])
        editor.graph.remove(before, safe=True)
    if (low, high) != (kind.min, kind.max):
        _clip_integers(editor, node, zero_point.dtype, (low, high))


def _pool_integers(node: ir.Node, pool: ir.Node) -> None:
    """Swap a MaxPool and the QuantizeLinear after it."""
    q, pooled = node.outputs[0], pool.outputs[0]
    node.replace_input_with(0, pool.inputs[0])
    q.replace_all_uses_with(pooled)
    pool.replace_input_with(0, q)
    pooled.type, q.shape = q.type, node.inputs[0].shape


def _is_worth_it(node: ir.Node) -> bool:
    """Whether an operator with integers inside comes before the clips."""
    value = node.inputs[0]
    while True:
        before = producer(value, *CLIPS, 'MaxPool')
        if before is None:
            return producer(value, 'Conv', 'Add', 'Gemm') is not None
        value = before.inputs[0]


def clip_ends(clip: ir.Node) -> Optional[tuple[float, float]]:
    """The least and largest number that a Relu or Clip gives; None where
    they are no constants.
    """
    if clip.op_type == 'Relu':
        return 0.0, np.inf
    ends = [-np.inf, np.inf]
    for i, value in enumerate(clip.inputs[1:]):
        if value is not None:
            if value.const_value is None:
                return None
            ends[i] = float(number(value))
    return ends[0], ends[1]


def _clip_integers(
    editor: Editor, node: ir.Node, dtype: Any, ends: tuple[int, int]
) -> None:
    q = node.outputs[0]
    uses = list(q.uses())
    low, high = (
        editor.constant(f'{q.name}_{side}', np.array(end, dtype))
        for side, end in zip(('low', 'high'), ends)
    )
    name = f'{q.name}_clipped'
    clipped = editor.node('Clip', [q, low, high], name, q.dtype, q)
    for use in uses:
        use.node.replace_input_with(use.idx, clipped)


def unstepped(model: ir.Model, target: Target) -> list[ir.Value]:
    """Outputs that the target wants quantized, and the network does not.

    Args:
        model (ir.Model): After :func:`quantize_early`.
        target (Target): What it is for.

    Returns:
        list[ir.Value]: Each as far behind its operator as clips reach.
    """
    found = []
    for _, weight in weights(model):
        for node in users(weight):
            if node.op_type not in target.step_after:
                continue
            if producer(node.inputs[0], 'DequantizeLinear') is None:
                continue
            value = node.outputs[0]
            while clip := only_user(value, *CLIPS):
                value = clip.outputs[0]
            stepped = only_user(value, 'QuantizeLinear') is not None
            if not stepped and not value.is_graph_output():
                found.append(value)
    return found


def add_steps(
    model: ir.Model, steps: dict[ir.Value, tuple[float, int]]
) -> None:
    """Quantize tensors that the network leaves in float.

    Args:
        model (ir.Model): Changed in place.
        steps (dict): Step and zero point (``uint8``) of each.
    """
    editor = Editor(model)
    for value, (scale, zero_point) in steps.items():
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
        out = editor.node(
            'DequantizeLinear',
            [q, *grid],
            f'{value.name}_stepped',
            ir.DataType.FLOAT,
            q,
        )
        for use in uses:
            use.node.replace_input_with(use.idx, out)


def integer_biases(model: ir.Model) -> None:
    """Give biases as integers in steps of input times weight.

    Args:
        model (ir.Model): Changed in place, after :func:`store_weights`.
    """
    editor = Editor(model)
    for _, weight in weights(model):
        if weight.inputs[0].dtype != ir.DataType.INT8:
            continue
        calls = []
        for node in users(weight):
            given = producer(node.inputs[0], 'DequantizeLinear')
            bias = number(node.inputs[2]) if len(node.inputs) > 2 else None
            if given is not None and bias is not None:
                calls.append((node, bias, number(given.inputs[1])))
        if calls:
            bounds = [
                np.abs(bias).astype('f8') / (float(step) * 2**30)
                for _, bias, step in calls
            ]
            _rescale(editor, weight, np.max(bounds, 0))
        for node, bias, step in calls:
            _give_integers(editor, weight, node, bias, step)


def _give_integers(
    editor: Editor, weight: ir.Node, node: ir.Node, bias: Any, step: Any
) -> None:
    name = node.inputs[2].name
    scale = (number(weight.inputs[1]) * step).astype('f4')
    integers = editor.constant(
        f'{name}_integers', np.rint(bias / scale.astype('f8')).astype('i4')
    )
    grid = [
        editor.constant(f'{name}_scale', scale),
        editor.constant(f'{name}_zero_point', np.zeros(len(bias), 'i4')),
    ]
    out = editor.node(
        'DequantizeLinear',
        [integers, *grid],
        f'{name}_dequantized',
        ir.DataType.FLOAT,
        node.inputs[0],
        axis=0,
    )
    out.shape = integers.shape
    node.replace_input_with(2, out)


def _rescale(editor: Editor, weight: ir.Node, least: np.ndarray) -> None:
    """Make a weight's steps as fine as eight bits let them be, by powers of
    two, so that a bias in such steps loses nothing that counts.

    Where a channel's weights are so small that its bias would leave the 32
    bits, its step becomes coarser instead; that rounds the weights by less
    than the bias could show before.

    Args:
        editor (Editor): Of the graph.
        weight (ir.Node): Its DequantizeLinear, in ``int8``.
        least (numpy.ndarray): The smallest step of each channel.
    """
    q, scale, offset = (number(x).astype('f8') for x in weight.inputs)
    rows = q.reshape(len(q), -1) - offset.reshape(-1, 1)
    largest = np.maximum(np.abs(rows).max(1), 1)
    finer = np.floor(np.log2(127 / largest))  # below 0 keeps its zero point
    coarsest = np.floor(np.log2(scale / np.maximum(least, 1e-300)))
    power = np.minimum(finer, coarsest)
    same = (power == 0) | ((finer < 0) & (coarsest >= 0))
    moved = np.clip(np.rint(rows * 2 ** power[:, None]), -128, 127)
    rows = np.where(same[:, None], q.reshape(rows.shape), moved)
    content = (
        rows.reshape(q.shape).astype('i1'),
        np.where(same, scale, scale * 2.0**-power).astype('f4'),
        np.where(same, offset, 0).astype('i1'),
    )
    for place, value in enumerate(content):
        name = weight.inputs[place].name
        weight.replace_input_with(
            place, editor.constant(f'{name}_rescaled', value)
        )


def tidy(model: ir.Model) -> None:
    """Drop constants that nobody uses, and torch's notes on its own code."""
    graph = model.graph
    for value in (*graph.inputs, *graph.initializers.values()):
        value.metadata_props.clear()
    for node in graph:
        node.doc_string = None
        for key in list(node.metadata_props):
            if key not in (LAYER, QUANTIZER, CALL):
                del node.metadata_props[key]
        for value in node.outputs:
            value.metadata_props.clear()
    for name, value in list(model.graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del model.graph.initializers[name]
    graph.sort()
