"""Looking around in a graph of ONNX, and adding to it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Optional

import numpy as np
import onnx_ir as ir

#: Keys of a node's metadata: whose weight it is, which quantizer, and which
#: call of a layer.
LAYER = 'mmrazor_brecq.layer'
QUANTIZER = 'mmrazor_brecq.quantizer'
CALL = 'mmrazor_brecq.call'


def producer(value: Optional[ir.Value], *ops: str) -> Optional[ir.Node]:
    """The node that a value comes from, if it is one of ``ops``."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type in ops else None


def only_user(value: ir.Value, *ops: str) -> Optional[ir.Node]:
    """The one node that uses a value, if it is one of ``ops``."""
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output():
        return None
    node = uses[0].node
    return node if not ops or node.op_type in ops else None


def number(value: Optional[ir.Value]) -> Any:
    """A constant as numpy has it, None if it is none."""
    const = value.const_value if value is not None else None
    return None if const is None else const.numpy()


class Editor:
    """Adds nodes and constants to a graph.

    Args:
        model (ir.Model): Changed in place.
    """

    def __init__(self, model: ir.Model) -> None:
        self.graph = model.graph
        self.names = {node.name for node in self.graph}

    def constant(self, name: str, array: Any, dtype: Any = None) -> ir.Value:
        """A new initializer.

        Args:
            name (str): Its name; one that is taken gets a number.
            array (numpy.ndarray): Its content.
            dtype (ir.DataType, optional): A packed type.
        """
        while name in self.graph.initializers:
            name += '_'
        tensor = (
            ir.tensor(np.asarray(array), name=name)
            if dtype is None
            else ir.tensor(np.asarray(array).astype(dtype.numpy()), name=name)
        )
        value = ir.Value(
            name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype)
        )
        value.const_value = tensor
        self.graph.register_initializer(value)
        return value

    def node(
        self,
        op: str,
        inputs: list[ir.Value],
        name: str,
        dtype: ir.DataType,
        after: ir.Value,
        **attributes: Any,
    ) -> ir.Value:
        """A new node of one output, put behind the one that gives ``after``
        (or first, where that is an input of the graph).
        """
        while name in self.names:
            name += '_'
        self.names.add(name)
        node = ir.node(op, inputs, attributes=attributes, name=name)
        out = node.outputs[0]
        out.name, out.shape, out.type = name, after.shape, ir.TensorType(dtype)
        before = after.producer()
        if before is None:
            self.graph.insert_before(self.graph[0], node)
        else:
            self.graph.insert_after(before, node)
        return out


def weights(model: ir.Model) -> Iterator[tuple[str, ir.Node]]:
    """Every layer's DequantizeLinear, with the layer's name."""
    for node in list(model.graph):
        if LAYER in node.metadata_props:
            yield node.metadata_props[LAYER], node


def users(weight: ir.Node) -> list[ir.Node]:
    """The nodes that compute with a dequantized weight: one for each call
    of its layer, in their order once :func:`name_calls` has seen it.
    """
    found = []
    for use in weight.outputs[0].uses():
        if use.node.op_type == 'Transpose':
            found += [use.node for use in use.node.outputs[0].uses()]
        else:
            found.append(use.node)
    return sorted(found, key=lambda n: int(n.metadata_props.get(CALL, 0)))


def name_calls(model: ir.Model) -> None:
    """Name nodes after the layers that they are a call of.

    Args:
        model (ir.Model): Changed in place; its nodes are in the order of
            execution.
    """
    order = {node: i for i, node in enumerate(model.graph)}
    for name, weight in weights(model):
        for i, node in enumerate(sorted(users(weight), key=order.__getitem__)):
            node.name = f'{name}#{i}' if i else name
            node.metadata_props[CALL] = str(i)
