"""Measure the latency of single layers in ONNX Runtime.

Every distinct layer becomes a model of its own, with the weight in ``int8``
and the input through a pair of QuantizeLinear and DequantizeLinear, as in an
exported network.
"""

from __future__ import annotations

import csv
import io
import json
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Optional, Union

import numpy as np

from .._requirements import require
from ..targets import FLOAT
from .cost import LatencyTable
from .shapes import CallShape

#: A row of a table: the columns of :class:`LatencyTable` and their values.
#: A template has an empty text in place of the time.
Row = dict[str, Union[str, int, float]]


class _LayerGraph:
    """Nodes and constants of a model with one layer.

    Args:
        shape (CallShape): The layer, for one image.
        weight (int): Bits of its weight, 32 for float.
        activation (int): Bits of its input and output, 32 for float.
    """

    def __init__(self, shape: CallShape, weight: int, activation: int) -> None:
        self.onnx = require('onnx')
        self.shape, self.weight, self.activation = shape, weight, activation
        self.is_linear = shape.op in ('linear', 'matmul')
        self.nodes: list = []
        self.constants: list = []
        self.output = self.requantize(
            self.layer(self.requantize('x'), self.matrix())
        )

    def constant(self, name: str, value: np.ndarray) -> str:
        """Add a constant, and return its name."""
        self.constants.append(self.onnx.numpy_helper.from_array(value, name))
        return name

    def node(
        self,
        op: str,
        inputs: Sequence[str],
        output: str,
        **attributes: Union[int, Sequence[int]],
    ) -> str:
        """Add a node, and return the name of its output."""
        self.nodes.append(
            self.onnx.helper.make_node(op, inputs, [output], **attributes)
        )
        return output

    def requantize(self, name: str) -> str:
        """Round an activation, and return the name of the result."""
        if self.activation == FLOAT:
            return name
        scale = np.array(2**-self.activation, np.float32)
        grid = (
            self.constant(f'{name}_scale', scale),
            self.constant(f'{name}_zero_point', np.array(0, np.uint8)),
        )
        q = self.node('QuantizeLinear', [name, *grid], f'{name}_q')
        return self.node('DequantizeLinear', [q, *grid], f'{name}_dq')

    def matrix(self) -> str:
        """Add the weight, and return the name of its real values."""
        rng = np.random.default_rng(0)
        sizes = self.shape.weight
        # MatMul takes the weight transposed.
        sizes = sizes[::-1] if self.is_linear else sizes
        channels = self.shape.weight[0]
        if self.weight == FLOAT:
            return self.constant('w', rng.random(sizes, np.float32))
        half = 2 ** (self.weight - 1)
        inputs = [
            self.constant('w', rng.integers(-half, half, sizes, np.int8)),
            self.constant('w_scale', np.full(channels, 0.01, np.float32)),
            self.constant('w_zero_point', np.zeros(channels, np.int8)),
        ]
        axis = 1 if self.is_linear else 0
        return self.node('DequantizeLinear', inputs, 'w_dq', axis=axis)

    def layer(self, source: str, matrix: str) -> str:
        """Add the layer itself, and return the name of its output."""
        if self.is_linear:
            return self.node('MatMul', [source, matrix], 'y')
        return self.node(
            'Conv',
            [source, matrix],
            'y',
            strides=self.shape.stride,
            pads=[*self.shape.padding, *self.shape.padding],
            dilations=self.shape.dilation,
            group=self.shape.groups,
        )

    def to_bytes(self) -> bytes:
        """Return the model as the content of a file."""
        helper, kind = self.onnx.helper, self.onnx.TensorProto.FLOAT
        sizes = [1, *self.shape.input]
        graph = helper.make_graph(
            self.nodes,
            'layer',
            [helper.make_tensor_value_info('x', kind, sizes)],
            [helper.make_tensor_value_info(self.output, kind, None)],
            self.constants,
        )
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid('', 21)], ir_version=10
        )
        return model.SerializeToString()


def layer_graph(shape: CallShape, weight: int, activation: int) -> bytes:
    """Return a layer as a model of ONNX (opset 21), with random weights.

    Integers of fewer than 8 bits are stored in 8, as in an exported network,
    since the kernels of the runtime know no others.

    Args:
        shape (CallShape): The layer, for one image.
        weight (int): Bits of its weight, 32 for float.
        activation (int): Bits of its input and output, 32 for float.

    Returns:
        bytes: The model, with the input ``x`` and one output.
    """
    return _LayerGraph(shape, weight, activation).to_bytes()


def time_graph(
    model: bytes, size: Sequence[int], repeats: int = 30, threads: int = 1
) -> float:
    """Return the median time of a run on the CPU, in milliseconds.

    Args:
        model (bytes): From :func:`layer_graph`.
        size (tuple[int]): Shape of its input, with the batch.
        repeats (int): Runs that are timed, after three that are not.
        threads (int): Threads of the runtime.
    """
    for package in 'onnx_ir', 'onnxruntime':
        require(package)
    from ..export.session import open_session

    session = open_session(model, threads=threads)
    inputs = {'x': np.random.default_rng(0).random(size, np.float32)}
    times = []
    for i in range(repeats + 3):
        start = time.perf_counter()
        session.run(None, inputs)
        if i >= 3:
            times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def measure_latency(
    shapes: Iterable[CallShape],
    weight_bits: Sequence[int],
    activation_bits: Sequence[int],
    repeats: int = 30,
    threads: int = 1,
) -> Iterator[Row]:
    """Measure every distinct layer at all bit widths.

    Bit widths that the runtime does not tell apart, because their integers
    have the same container, are measured once.

    Args:
        shapes (list[CallShape]): The layers.
        weight_bits (list[int]): Bits of weights; 32 is float.
        activation_bits (list[int]): Bits of inputs; 32 is float.
        repeats (int): See :func:`time_graph`.
        threads (int): See :func:`time_graph`.

    Yields:
        dict: Rows with the columns of :class:`LatencyTable`.
    """
    for key, shape in {shape.key: shape for shape in shapes}.items():
        known: dict[tuple[bool, bool], float] = {}
        for weight in weight_bits:
            for activation in activation_bits:
                container = weight == FLOAT, activation == FLOAT
                if container not in known:
                    known[container] = time_graph(
                        layer_graph(shape, weight, activation),
                        (1, *shape.input),
                        repeats,
                        threads,
                    )
                values = key, weight, activation, known[container]
                yield dict(zip(LatencyTable.COLUMNS, values))


def format_rows(
    rows: Sequence[Row],
    ending: str,
    device: Optional[Mapping[str, object]] = None,
) -> str:
    """Return a latency table as text.

    Args:
        rows (list[dict]): With the columns of :class:`LatencyTable`.
        ending (str): ``.json`` or ``.csv``.
        device (dict, optional): Notes on the device, for JSON only.

    Raises:
        ValueError: If the ending is another one.
    """
    if ending == '.json':
        return json.dumps(dict(device=device or {}, rows=rows), indent=1)
    if ending == '.csv':
        text = io.StringIO()
        writer = csv.DictWriter(text, LatencyTable.COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()
    raise ValueError(
        f'--out ends in {ending!r}, expected a file that ends in .csv or .json'
    )
