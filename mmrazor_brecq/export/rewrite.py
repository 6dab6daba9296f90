"""Rewrite a traced network into the form that a target runs best.

Every pass here leaves the function that the network computes as it is.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Optional

import numpy as np
import onnx_ir as ir

from .nodes import (
    CALL,
    LAYER,
    PRODUCT,
    QUANTIZER,
    Editor,
    array_of,
    by_channel,
    is_constant,
    only_user,
    producer,
    weights,
)
from .targets import OPSET_OF_PACKED, Target

#: Operators that clip. They keep the order of values, so that they may as
#: well run on integers.
CLIPS = ('Relu', 'Clip')

PACKED_TYPES = {2: ir.DataType.INT2, 4: ir.DataType.INT4}


def store_weights(
    model: ir.Model, target: Target, bits: Mapping[str, int], pack: bool
) -> dict[str, int]:
    """Put the weights into containers that the target takes.

    Packed types keep the zero point. In ``int8`` it is subtracted from the
    integers where all of them still fit, as those of fewer than 8 bits
    always do: then no runtime has to.

    Args:
        model (ir.Model): Changed in place.
        target (Target): What the file is for.
        bits (dict[str, int]): Bits of every layer's weight.
        pack (bool): Whether to pack.

    Returns:
        dict[str, int]: Bits of every layer's weight in the file.
    """
    editor, stored = Editor(model), {}
    for name, node in weights(model):
        stored[name] = target.stored_bits(bits[name], pack)
        if stored[name] < 8:
            _require_packed(model, stored[name])
        integers, zero_point, dtype = _contained(node, stored[name])
        for position, array in ((0, integers), (2, zero_point)):
            old = node.inputs[position]
            new = editor.constant(f'{old.name}_', array, dtype)
            node.replace_input_with(position, new)
            if not old.uses():
                del model.graph.initializers[old.name]
                new.name = old.name
    return stored


def _require_packed(model: ir.Model, bits: int) -> None:
    """Raise the versions of a model to those that have a packed type."""
    opsets = model.graph.opset_imports
    opsets[''] = max(opsets[''], OPSET_OF_PACKED[bits])
    if bits == 2:
        model.ir_version = max(model.ir_version or 10, 13)


def _contained(
    node: ir.Node, bits: int
) -> tuple[np.ndarray, np.ndarray, Optional[ir.DataType]]:
    """Return integers and zero points of a weight as a container has them.

    Args:
        node (ir.Node): The weight's DequantizeLinear.
        bits (int): Bits of the container: 2, 4 or 8.

    Returns:
        tuple: Both arrays, and their packed type, None for ``int8``.
    """
    integers = array_of(node.inputs[0]).astype(np.int16)
    zero_point = array_of(node.inputs[2]).astype(np.int16)
    if bits < 8:
        return integers, zero_point, PACKED_TYPES[bits]
    centered = integers - by_channel(zero_point, integers.ndim)
    if np.abs(centered).max() <= 127:
        integers, zero_point = centered, np.zeros_like(zero_point)
    return integers.astype(np.int8), zero_point.astype(np.int8), None


def share_scales(model: ir.Model, names: Collection[str]) -> None:
    """Give weights one scale, where all of their channels have the same.

    Args:
        model (ir.Model): Changed in place, after :func:`store_weights`.
        names (list[str]): Names of layers whose weights have one scale.
    """
    editor = Editor(model)
    for name, node in weights(model):
        if name not in names:
            continue
        for position in (1, 2):
            old = node.inputs[position]
            value = array_of(old).ravel()[:1].reshape(())
            new = editor.constant(f'{old.name}_shared', value, old.dtype)
            node.replace_input_with(position, new)
        node.attributes.pop('axis', None)


def quantize_early(model: ir.Model, fuses: Sequence[str]) -> None:
    """Move operators such as Relu behind the QuantizeLinear after them.

    They keep the order of values, so the result is the same on the integers,
    and the operator before them can put out integers. Clips become a single
    Clip, or none where the type of the integers clips by itself.

    Args:
        model (ir.Model): Changed in place.
        fuses (list[str]): The operators: Relu, Clip and MaxPool, or some of
            them.
    """
    if not fuses:
        return
    editor = Editor(model)
    for node in list(model.graph):
        if node.op_type == 'QuantizeLinear':
            _quantize_early(editor, node, fuses)
    editor.graph.sort()


def _quantize_early(
    editor: Editor, node: ir.Node, fuses: Sequence[str]
) -> None:
    """Move one QuantizeLinear in front of what is before it."""
    if not is_constant(node.inputs[1]) or not _runs_in_integers(node, fuses):
        return
    scale, zero_point = array_of(node.inputs[1]), array_of(node.inputs[2])
    if scale.ndim or zero_point.dtype.itemsize > 1:
        return
    info = np.iinfo(zero_point.dtype)
    low, high = int(info.min), int(info.max)
    while True:
        value = node.inputs[0]
        before = producer(value, *fuses)
        if before is None or only_user(value) != node:
            break
        if before.op_type == 'MaxPool':
            if any(out.uses() for out in before.outputs[1:]):
                break
            _pool_integers(node, before)
            continue
        bounds = clip_bounds(before)
        if bounds is None:
            break
        on_grid = [np.rint(np.float32(x) / scale) + zero_point for x in bounds]
        low, high = int(max(on_grid[0], low)), int(min(on_grid[1], high))
        node.replace_input_with(0, before.inputs[0])
        editor.graph.remove(before, safe=True)
    if (low, high) != (info.min, info.max):
        _clip_integers(editor, node, zero_point.dtype, (low, high))


def _pool_integers(node: ir.Node, pool: ir.Node) -> None:
    """Swap a MaxPool and the QuantizeLinear after it."""
    q, pooled = node.outputs[0], pool.outputs[0]
    node.replace_input_with(0, pool.inputs[0])
    q.replace_all_uses_with(pooled)
    pool.replace_input_with(0, q)
    pooled.type, q.shape = q.type, node.inputs[0].shape


def _runs_in_integers(node: ir.Node, fuses: Sequence[str]) -> bool:
    """Return whether an operator that has an integer form feeds the clips."""
    value = node.inputs[0]
    while before := producer(value, *fuses):
        value = before.inputs[0]
    return producer(value, 'Conv', 'Add', 'Gemm') is not None


def clip_bounds(clip: ir.Node) -> Optional[tuple[float, float]]:
    """Return the smallest and largest value that a Relu or Clip puts out.

    Returns:
        tuple[float, float]: Both bounds, infinite where there is none; None
        where a bound is no constant.
    """
    if clip.op_type == 'Relu':
        return 0.0, np.inf
    bounds = [-np.inf, np.inf]
    for i, value in enumerate(clip.inputs[1:]):
        if value is not None:
            if not is_constant(value):
                return None
            bounds[i] = float(array_of(value))
    return bounds[0], bounds[1]


def _clip_integers(
    editor: Editor, node: ir.Node, dtype: np.dtype, bounds: tuple[int, int]
) -> None:
    """Put a Clip behind a QuantizeLinear."""
    q = node.outputs[0]
    uses = list(q.uses())
    low, high = (
        editor.constant(f'{q.name}_{side}', np.array(bound, dtype))
        for side, bound in zip(('low', 'high'), bounds)
    )
    name = f'{q.name}_clipped'
    clipped = editor.node('Clip', [q, low, high], name, q.dtype, q)
    for use in uses:
        use.node.replace_input_with(use.idx, clipped)


def tidy(model: ir.Model) -> None:
    """Remove unused constants, and the notes of torch on its own code.

    Args:
        model (ir.Model): Changed in place.
    """
    graph = model.graph
    for value in (*graph.inputs, *graph.initializers.values()):
        value.metadata_props.clear()
    for node in graph:
        node.doc_string = None
        for key in list(node.metadata_props):
            if key not in (LAYER, QUANTIZER, CALL, PRODUCT):
                del node.metadata_props[key]
        for value in node.outputs:
            value.metadata_props.clear()
    for name, value in list(model.graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del model.graph.initializers[name]
    graph.sort()
