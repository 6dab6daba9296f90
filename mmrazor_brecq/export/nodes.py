"""Read a graph of ONNX, and add nodes and constants to it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Optional, Union

import numpy as np
import onnx_ir as ir

#: Keys of a node's metadata: the layer whose weight it is, the quantizer
#: that it stands for, and which call of a layer it is.
LAYER = 'mmrazor_brecq.layer'
QUANTIZER = 'mmrazor_brecq.quantizer'
CALL = 'mmrazor_brecq.call'
#: Key of the node that puts out a product of activations: its name.
PRODUCT = 'mmrazor_brecq.product'


def producer(value: Optional[ir.Value], *ops: str) -> Optional[ir.Node]:
    """Return the node that computes a value, if it is one of ``ops``.

    Args:
        value (ir.Value, optional): A value of the graph.
        ops (str): Types of operators.
    """
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type in ops else None


def only_user(value: ir.Value, *ops: str) -> Optional[ir.Node]:
    """Return the single node that uses a value, if it is one of ``ops``.

    Args:
        value (ir.Value): A value of the graph. An output of the graph has
            no single user.
        ops (str): Types of operators; by default all.
    """
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output():
        return None
    node = uses[0].node
    return node if not ops or node.op_type in ops else None


def is_constant(value: Optional[ir.Value]) -> bool:
    """Return whether a value exists and is a constant."""
    return value is not None and value.const_value is not None


def array_of(constant: ir.Value) -> np.ndarray:
    """Return the content of a constant.

    Args:
        constant (ir.Value): A value for which :func:`is_constant` holds.
    """
    return constant.const_value.numpy()


def bias_of(node: ir.Node) -> Optional[ir.Value]:
    """Return the bias input of a Conv or Gemm, None where it has none."""
    return node.inputs[2] if len(node.inputs) > 2 else None


def eight_bits(value: Optional[ir.Value]) -> Optional[ir.Node]:
    """Return the DequantizeLinear of 8-bit integers that computes a value.

    Those of 16 bits are computed with in float by every runtime.

    Args:
        value (ir.Value, optional): A value of the graph.
    """
    node = producer(value, 'DequantizeLinear')
    if node is None or array_of(node.inputs[2]).dtype.itemsize > 1:
        return None
    return node


def by_channel(values: np.ndarray, dims: int) -> np.ndarray:
    """Reshape one value per channel so that it broadcasts to a weight.

    Args:
        values (numpy.ndarray): C values, or a single one.
        dims (int): Number of dimensions of the weight, whose first one has
            size C.
    """
    return values.reshape(-1, *[1] * (dims - 1))


class Editor:
    """Writer of new nodes and constants into a graph.

    Args:
        model (ir.Model): Changed in place.
    """

    def __init__(self, model: ir.Model) -> None:
        self.graph = model.graph
        self.names = {node.name for node in self.graph}

    def constant(
        self,
        name: str,
        array: Union[np.ndarray, np.generic],
        dtype: Optional[ir.DataType] = None,
    ) -> ir.Value:
        """Add an initializer.

        Args:
            name (str): Its name; underscores are appended to one that is
                taken.
            array (numpy.ndarray): Its content.
            dtype (ir.DataType, optional): A packed type; by default that of
                the array.

        Returns:
            ir.Value: The new constant.
        """
        while name in self.graph.initializers:
            name += '_'
        content = np.asarray(array)
        if dtype is not None:
            content = content.astype(dtype.numpy())
        tensor = ir.tensor(content, name=name)
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
        **attributes: int,
    ) -> ir.Value:
        """Add a node with one output, of the shape of ``after``.

        Args:
            op (str): Type of the operator.
            inputs (list[ir.Value]): Its inputs.
            name (str): Name of the node and of its output; underscores are
                appended to one that is taken.
            dtype (ir.DataType): Type of the output.
            after (ir.Value): The node is put behind the one that computes
                this value, or first where it is an input of the graph.
            attributes (int): Attributes of the operator.

        Returns:
            ir.Value: The output.
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

    def dequantize(
        self,
        integers: ir.Value,
        grid: list[ir.Value],
        name: str,
        after: ir.Value,
        **attributes: int,
    ) -> ir.Value:
        """Add a DequantizeLinear.

        Args:
            integers (ir.Value): What it dequantizes.
            grid (list[ir.Value]): Scale and zero point.
            name (str): As for :meth:`node`.
            after (ir.Value): As for :meth:`node`.
            attributes (int): As for :meth:`node`.

        Returns:
            ir.Value: The real values.
        """
        return self.node(
            'DequantizeLinear',
            [integers, *grid],
            name,
            ir.DataType.FLOAT,
            after,
            **attributes,
        )


def weights(model: ir.Model) -> Iterator[tuple[str, ir.Node]]:
    """Yield each layer's name and the DequantizeLinear of its weight."""
    for node in list(model.graph):
        if LAYER in node.metadata_props:
            yield node.metadata_props[LAYER], node


def users(weight: ir.Node) -> list[ir.Node]:
    """Return the nodes that compute with a dequantized weight.

    Args:
        weight (ir.Node): A DequantizeLinear from :func:`weights`.

    Returns:
        list[ir.Node]: One for each call of the layer, in the order of the
        calls once :func:`name_calls` has numbered them.
    """
    found = []
    for use in weight.outputs[0].uses():
        if use.node.op_type == 'Transpose':
            found += [use.node for use in use.node.outputs[0].uses()]
        else:
            found.append(use.node)
    return sorted(found, key=lambda n: int(n.metadata_props.get(CALL, 0)))


def products(model: ir.Model) -> Iterator[tuple[str, ir.Node]]:
    """Yield the name of each product, and the node that puts it out."""
    for node in model.graph:
        if PRODUCT in node.metadata_props:
            yield node.metadata_props[PRODUCT], node


def name_calls(model: ir.Model) -> None:
    """Name and number nodes by the layers that they are a call of.

    Args:
        model (ir.Model): Changed in place; its nodes are in the order of
            execution.
    """
    order = {node: i for i, node in enumerate(model.graph)}
    for name, weight in weights(model):
        for i, node in enumerate(sorted(users(weight), key=order.__getitem__)):
            node.name = f'{name}#{i}' if i else name
            node.metadata_props[CALL] = str(i)
    counts: Counter[str] = Counter()
    for name, node in products(model):
        # A product of scales by head ends in a multiplication by them.
        product = producer(node.inputs[0], 'MatMul')
        product = node if node.op_type == 'MatMul' else product
        if product is not None:
            product.name = f'{name}#{counts[name]}' if counts[name] else name
        counts[name] += 1
