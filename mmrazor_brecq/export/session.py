"""Running a model in ONNX Runtime, with a look at what is inside."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Union

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import torch
from onnxruntime.capi.onnxruntime_pybind11_state import Fail
from torch import Tensor

PROVIDERS = ['CPUExecutionProvider']


def to_bytes(model: ir.Model) -> bytes:
    """A model as a file would have it."""
    return ir.to_proto(model).SerializeToString()


def open_session(
    model: Union[str, bytes],
    fused: bool = True,
    threads: int = 1,
    optimized: str = '',
) -> ort.InferenceSession:
    """A session on the CPU.

    Args:
        model (str | bytes): A file, or its content.
        fused (bool): Whether operators may run in integers; else each runs
            as the standard says, between its neighbours' roundings.
        threads (int): Threads of one operator.
        optimized (str): Where to write what the runtime makes of it.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    if not fused:
        # Some optimisations are wrong where inner values are looked at.
        options.add_session_config_entry('session.disable_quant_qdq', '1')
        options.graph_optimization_level = (
            ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        )
    if optimized:
        options.optimized_model_filepath = optimized
    # x86 CPUs without VNNI else add two products in 16 bits, which
    # saturate; other CPUs do not ask for it.
    options.add_session_config_entry('session.x64quantprecision', '1')
    try:
        return ort.InferenceSession(model, options, providers=PROVIDERS)
    except Fail:  # It stumbles over weights that two layers share.
        options.add_session_config_entry('session.x64quantprecision', '0')
        return ort.InferenceSession(model, options, providers=PROVIDERS)


def run(session: ort.InferenceSession, images: Tensor) -> list[np.ndarray]:
    """The outputs for a batch of images."""
    return session.run(None, {'image': images.cpu().contiguous().numpy()})


@contextmanager
def _showing(model: ir.Model, values: Sequence[ir.Value]) -> Iterator[None]:
    """With these values as further outputs of the graph."""
    outputs = model.graph.outputs
    own = len(outputs)
    shown = [v for v in dict.fromkeys(values) if not v.is_graph_output()]
    outputs.extend(shown)
    try:
        yield
    finally:
        while len(outputs) > own:
            outputs.pop()


def look_inside(
    model: ir.Model, values: Sequence[ir.Value], images: Tensor
) -> dict[str, Tensor]:
    """What values are for a batch of images, each operator run by itself.

    Args:
        model (ir.Model): Any.
        values (list[ir.Value]): Of its graph.
        images (Tensor): The input.

    Returns:
        dict[str, Tensor]: By the values' names.
    """
    with _showing(model, values):
        session = open_session(to_bytes(model), fused=False)
    names = [output.name for output in session.get_outputs()]
    found = dict(zip(names, run(session, images)))
    return {v.name: torch.from_numpy(found[v.name]) for v in values}


def fusion(model: bytes) -> tuple[dict[str, int], list[str]]:
    """What ONNX Runtime makes of a model.

    Args:
        model (bytes): A file's content.

    Returns:
        tuple[dict, list]: Its operators and how many there are, and the
        names of the convolutions that it runs in float.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, 'optimized.onnx')
        open_session(model, optimized=path)
        nodes = onnx.load(path).graph.node
    counts: Any = Counter(node.op_type for node in nodes)
    floats = ('Conv', 'FusedConv', 'NhwcFusedConv')
    return dict(counts), [n.name for n in nodes if n.op_type in floats]
