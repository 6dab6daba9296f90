"""Run a model in ONNX Runtime, and look at the values inside it."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Union

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import torch
from onnxruntime.capi.onnxruntime_pybind11_state import Fail
from torch import Tensor

PROVIDERS = ['CPUExecutionProvider']


def to_bytes(model: ir.Model) -> bytes:
    """Return a model as the content of a file."""
    return ir.to_proto(model).SerializeToString()


def open_session(
    model: Union[str, bytes],
    fused: bool = True,
    threads: int = 1,
    optimized: str = '',
) -> ort.InferenceSession:
    """Open a session on the CPU.

    Args:
        model (str | bytes): A file, or its content.
        fused (bool): Whether operators may run in integers; otherwise each
            runs as the standard says, between the roundings around it.
        threads (int): Threads of one operator.
        optimized (str): File for the model as the runtime optimizes it; by
            default it is not written.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 4  # Errors are raised.
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    if not fused:
        # Some optimizations change values inside, which are looked at.
        options.add_session_config_entry('session.disable_quant_qdq', '1')
        options.graph_optimization_level = (
            ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        )
    if optimized:
        options.optimized_model_filepath = optimized
    # Without it, x86 CPUs that lack VNNI add two products in 16 bits, which
    # saturate. Other CPUs ignore it.
    options.add_session_config_entry('session.x64quantprecision', '1')
    try:
        return ort.InferenceSession(model, options, providers=PROVIDERS)
    except Fail:  # The entry does not work with weights that layers share.
        options.add_session_config_entry('session.x64quantprecision', '0')
        # Nor does the runtime's own change of int8 to uint8 where it moves a
        # quantizer past a transpose.
        options.add_session_config_entry('session.qdqisint8allowed', '1')
        return ort.InferenceSession(model, options, providers=PROVIDERS)


def run(session: ort.InferenceSession, images: Tensor) -> list[np.ndarray]:
    """Return the outputs for a batch of images."""
    return session.run(None, {'image': images.cpu().contiguous().numpy()})


@contextmanager
def _as_outputs(model: ir.Model, values: Sequence[ir.Value]) -> Iterator[None]:
    """Make values further outputs of the graph, within the context."""
    outputs = model.graph.outputs
    count = len(outputs)
    added = [v for v in dict.fromkeys(values) if not v.is_graph_output()]
    outputs.extend(added)
    try:
        yield
    finally:
        while len(outputs) > count:
            outputs.pop()


def look_inside(
    model: ir.Model, values: Sequence[ir.Value], images: Tensor
) -> dict[str, Tensor]:
    """Compute values of a graph for a batch, each operator by itself.

    Args:
        model (ir.Model): Any.
        values (list[ir.Value]): Of its graph.
        images (Tensor): The input, as the file takes it.

    Returns:
        dict[str, Tensor]: By the names of the values.
    """
    with _as_outputs(model, values):
        session = open_session(to_bytes(model), fused=False)
    names = [output.name for output in session.get_outputs()]
    found = dict(zip(names, run(session, images)))
    return {v.name: torch.from_numpy(found[v.name]) for v in values}


def fusion(model: bytes) -> tuple[dict[str, int], list[str]]:
    """Return which operators ONNX Runtime makes of a model.

    Args:
        model (bytes): Content of a file.

    Returns:
        tuple[dict, list]: The number of operators of each type, and the
        names of the convolutions that it runs in float.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, 'optimized.onnx')
        open_session(model, optimized=path)
        nodes = onnx.load(path).graph.node
    counts = Counter(str(node.op_type) for node in nodes)
    floats = ('Conv', 'FusedConv', 'NhwcFusedConv')
    return dict(counts), [n.name for n in nodes if n.op_type in floats]
