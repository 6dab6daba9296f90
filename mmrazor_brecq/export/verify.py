"""Prove that a file is the network that it was made from."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Optional

import numpy as np
import onnx_ir as ir
from torch import Tensor, nn

from .._requirements import require
from .constants import compare_constants
from .match import compare_layers
from .nodes import only_user
from .noise import joined, output_noise, torch_outputs
from .outputs import compare_outputs
from .proof import Proof
from .session import fusion, open_session, run, to_bytes


def verify(
    network: nn.Module,
    model: ir.Model,
    batches: Sequence[tuple[Tensor, Tensor]],
    labels: Optional[np.ndarray] = None,
    layer_images: int = 8,
    fused: bool = True,
) -> Proof:
    """Run a file and its network on the same images, and compare them.

    Args:
        network (nn.Module): Quantized, in torch.
        model (ir.Model): Made from it.
        batches (list[tuple]): Images as the network takes them, and as the
            file does.
        labels (numpy.ndarray, optional): True classes of all images.
        layer_images (int): Number of images that layers are compared on.
        fused (bool): Whether the file is for ONNX Runtime, which then may
            run it in integers; otherwise that runtime only shows what the
            standard says of the file.
    """
    expected = torch_outputs(network, [x for x, _ in batches])
    inputs = [x for _, x in batches]
    content = to_bytes(model)
    types = {value.dtype for value in model.graph.initializers.values()}
    fused = fused and ir.DataType.INT2 not in types
    name = f'ONNX Runtime {require("onnxruntime").__version__}'
    if not fused:
        name += ', not fused'
    found = _run_onnxruntime(content, inputs, fused)
    noise = output_noise(network, content, batches, expected)
    matches = [compare_outputs(name, expected, found, labels, noise)]
    refused = {}
    openvino = _find_openvino()
    if openvino is not None:
        name = f'OpenVINO {openvino.__version__.partition("-")[0]}'
        try:
            found = _run_openvino(openvino, content, inputs)
        except RuntimeError as error:
            refused[name] = str(error).strip().splitlines()[-1]
        else:
            matches.append(
                compare_outputs(name, expected, found, labels, noise)
            )
    images, first_inputs = (x[:layer_images] for x in batches[0])
    proof = Proof(
        matches,
        compare_layers(network, model, images, first_inputs),
        refused,
        constants=compare_constants(network, model),
    )
    if fused:
        proof.operators, names = fusion(content)
        proof.float_convolutions = {n: _why_float(model, n) for n in names}
    return proof


def _why_float(model: ir.Model, name: str) -> str:
    """Return what keeps a convolution from running in integers."""
    node = next((n for n in model.graph if n.name == name), None)
    if node is None:
        return 'the runtime made it itself'
    source, weight = (value.producer() for value in node.inputs[:2])
    if source is None or source.op_type != 'DequantizeLinear':
        kind = 'an input' if source is None else source.op_type
        return f'its input comes from {kind}'
    if weight is None or weight.op_type != 'DequantizeLinear':
        return 'its weight is float'
    if weight.inputs[0].dtype != ir.DataType.INT8:
        return 'its weight is packed'
    if node.outputs[0].is_graph_output():
        return 'its output is that of the network'
    if only_user(node.outputs[0], 'QuantizeLinear') is None:
        return 'its output is float'
    return 'the runtime decided so'


def _run_onnxruntime(
    content: bytes, batches: Sequence[Tensor], fused: bool
) -> list[np.ndarray]:
    """Return the outputs of a file for all batches, in ONNX Runtime."""
    session = open_session(content, fused=fused)
    return joined([run(session, x) for x in batches])


def _find_openvino() -> Optional[ModuleType]:
    """Return the module of OpenVINO, None where it is not installed."""
    try:
        return require('openvino')
    except ImportError:
        return None


def _run_openvino(
    openvino: ModuleType, content: bytes, batches: Sequence[Tensor]
) -> list[np.ndarray]:
    """Return the outputs of a file for all batches, in OpenVINO."""
    core = openvino.Core()
    # By default it computes in half precision where the processor can.
    compiled = core.compile_model(
        core.read_model(content, b''),
        'CPU',
        {'INFERENCE_PRECISION_HINT': 'f32'},
    )
    return joined(
        [
            [np.array(x) for x in compiled(x.contiguous().numpy()).to_tuple()]
            for x in batches
        ]
    )
