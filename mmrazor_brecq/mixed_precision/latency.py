"""Latency of single layers, measured in ONNX Runtime.

Every distinct layer becomes a model of its own, with the weight in ``int8``
and the input through a pair of QuantizeLinear and DequantizeLinear, as an
exported network has them.
"""

from __future__ import annotations

import csv
import io
import json
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Optional

import numpy as np

from .._requirements import require
from .cost import FLOAT, LatencyTable
from .shapes import CallShape

Row = dict[str, Any]


def layer_graph(shape: CallShape, weight: int, activation: int) -> bytes:
    """A layer as an ONNX model (opset 21).

    Integers of fewer bits than 8 lie in 8: so does an exported network,
    since the runtime's kernels know no other width. The values are random.

    Args:
        shape (CallShape): The layer, for one image.
        weight (int): Width of its weight, 32 for float.
        activation (int): Width of its input and output, 32 for float.

    Returns:
        bytes: The model, with one input and one output.
    """
    onnx = require('onnx')
    helper = onnx.helper
    rng = np.random.default_rng(0)
    constants, nodes = [], []

    def constant(name: str, value: Any) -> str:
        constants.append(onnx.numpy_helper.from_array(np.asarray(value), name))
        return name

    def requantized(name: str) -> str:
        if activation == FLOAT:
            return name
        steps = (
            constant(f'{name}_step', np.float32(2**-activation)),
            constant(f'{name}_zero', np.uint8(0)),
        )
        for op, end in (('QuantizeLinear', '_q'), ('DequantizeLinear', '_dq')):
            nodes.append(helper.make_node(op, [name, *steps], [name + end]))
            name += end
        return name

    linear = shape.op == 'linear'
    source = requantized('x')
    values = shape.weight[::-1] if linear else shape.weight
    if weight == FLOAT:
        matrix = constant('w', rng.random(values, np.float32))
    else:
        ends = -(2 ** (weight - 1)), 2 ** (weight - 1)
        constant('w', rng.integers(*ends, values, np.int8))
        constant('w_step', np.full(shape.weight[0], 0.01, np.float32))
        constant('w_zero', np.zeros(shape.weight[0], np.int8))
        matrix = 'w_dq'
        nodes.append(
            helper.make_node(
                'DequantizeLinear',
                ['w', 'w_step', 'w_zero'],
                [matrix],
                axis=1 if linear else 0,
            )
        )
    nodes.append(
        helper.make_node('MatMul', [source, matrix], ['y'])
        if linear
        else helper.make_node(
            'Conv',
            [source, matrix],
            ['y'],
            strides=shape.stride,
            pads=[*shape.padding, *shape.padding],
            dilations=shape.dilation,
            group=shape.groups,
        )
    )
    out = requantized('y')
    graph = helper.make_graph(
        nodes,
        'layer',
        [
            helper.make_tensor_value_info(
                'x', onnx.TensorProto.FLOAT, [1, *shape.input]
            )
        ],
        [helper.make_tensor_value_info(out, onnx.TensorProto.FLOAT, None)],
        constants,
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid('', 21)], ir_version=10
    )
    return model.SerializeToString()


def time_graph(
    model: bytes, size: Sequence[int], repeats: int = 30, threads: int = 1
) -> float:
    """Median milliseconds of a run on the CPU.

    Args:
        model (bytes): From :func:`layer_graph`.
        size (tuple[int]): Shape of its input, with the batch.
        repeats (int): Runs that are timed, after a few that are not.
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
    """Time every distinct layer at every width.

    Bit widths whose models are the same to the runtime, since their integers
    lie in equal containers, are timed once.

    Args:
        shapes (list[CallShape]): The layers.
        weight_bits (list[int]): Bit widths of weights; 32 is float.
        activation_bits (list[int]): Bit widths of inputs; 32 is float.
        repeats (int): See :func:`time_graph`.
        threads (int): Likewise.

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
    rows: Sequence[Row], ending: str, device: Optional[dict] = None
) -> str:
    """A latency table as text.

    Args:
        rows (list[dict]): With the columns of :class:`LatencyTable`.
        ending (str): ``.json`` or ``.csv``.
        device (dict, optional): Notes on the device, for JSON alone.

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
