"""The proof that a file is the network that it was made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Optional

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from .._requirements import require
from ..graph import run_float
from .compare import LayerMatch, compare_layers
from .nodes import only_user
from .session import fusion, open_session, run, to_bytes


@dataclass
class Match:
    """How far a whole file is from the network in torch.

    Attributes:
        runtime (str): What ran it.
        images (int): How many were compared.
        agreement (float): Share of images with the same best class, 0 to 1.
        largest (float): Largest difference, relative to the largest output.
        mean (float): Mean difference, relative to the mean magnitude.
        accuracy (float, optional): Its top-1, in per cent.
        accuracy_torch (float, optional): That of the network in torch.
    """

    runtime: str
    images: int
    agreement: float
    largest: float
    mean: float
    accuracy: Optional[float] = None
    accuracy_torch: Optional[float] = None


@dataclass
class Verification:
    """What is known of a file.

    Attributes:
        matches (list[Match]): One for each runtime.
        layers (list[LayerMatch]): In the order of their calls.
        refused (dict[str, str]): Runtimes that are here and do not take the
            file, and what they say.
        operators (dict[str, int]): What ONNX Runtime makes of the file.
        float_convolutions (dict[str, str]): Layers that it runs in float,
            and why.
    """

    matches: list[Match]
    layers: list[LayerMatch]
    refused: dict[str, str] = field(default_factory=dict)
    operators: dict[str, int] = field(default_factory=dict)
    float_convolutions: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain Python, for a JSON file."""
        return asdict(self)

    def problem(
        self, runtime: str, agreement: float, exact: float, within: float
    ) -> Optional[str]:
        """What falls short, if anything does.

        Args:
            runtime (str): The one that must not refuse it.
            agreement (float): Least share of images of the same class.
            exact (float): Least share of equal elements in every layer.
            within (float): Least share of those within one step.
        """
        for layer in self.layers:
            if layer.exact < exact or layer.within < within:
                return (
                    f'{layer.name} is the first layer that differs: '
                    f'{layer.exact:.2%} of its integers are equal and '
                    f'{layer.within:.2%} within one step, expected '
                    f'{exact:.2%} and {within:.2%}; the largest difference '
                    f'is {layer.largest:.3g} steps'
                )
        for name, reason in self.refused.items():
            if runtime and name.startswith(runtime):
                return f'{name} does not take it: {reason}'
        for match in self.matches:
            if not match.agreement >= agreement:
                return (
                    f'{match.runtime} and torch agree on '
                    f'{match.agreement:.2%} of {match.images} images, '
                    f'expected {agreement:.2%}, though every layer by '
                    'itself is the same: the network says nearly the same '
                    'of all classes, as an untrained one does, or the '
                    'runtime sums otherwise than the standard has it; '
                    '--least-agreement (`least_agreement`) is what is '
                    'expected'
                )
        return None


def compare_outputs(
    runtime: str,
    expected: Sequence[np.ndarray],
    found: Sequence[np.ndarray],
    labels: Optional[np.ndarray] = None,
) -> Match:
    """Compare outputs of the same images.

    Args:
        runtime (str): What ran the file.
        expected (list[numpy.ndarray]): Outputs of the network in torch,
            N x ... each.
        found (list[numpy.ndarray]): Those of the file.
        labels (numpy.ndarray, optional): N true classes.
    """
    ours, theirs = (x[-1].reshape(len(x[-1]), -1) for x in (expected, found))
    best, best_found = ours.argmax(1), theirs.argmax(1)
    pairs = list(zip(expected, found))
    match = Match(
        runtime,
        images=len(ours),
        agreement=float((best == best_found).mean()),
        largest=max(
            float(np.abs(x - y).max() / max(np.abs(x).max(), 1e-30))
            for x, y in pairs
        ),
        mean=max(
            float(np.abs(x - y).mean() / max(np.abs(x).mean(), 1e-30))
            for x, y in pairs
        ),
    )
    if labels is not None:
        match.accuracy = 100 * float((best_found == labels).mean())
        match.accuracy_torch = 100 * float((best == labels).mean())
    return match


def verify(
    network: nn.Module,
    model: ir.Model,
    batches: Sequence[tuple[Tensor, Tensor]],
    labels: Optional[np.ndarray] = None,
    layer_images: int = 8,
    fused: bool = True,
) -> Verification:
    """Run a file and its network on the same images.

    Args:
        network (nn.Module): Quantized, in torch.
        model (ir.Model): Made from it.
        batches (list[tuple]): Images as the network takes them, and as the
            file does.
        labels (numpy.ndarray, optional): True classes of all images.
        layer_images (int): Images that layers are compared on.
        fused (bool): Whether it is for ONNX Runtime, which then may run it
            in integers; else that only says what the standard says of it.
    """
    expected = _torch_outputs(network, [x for x, _ in batches])
    inputs = [x for _, x in batches]
    content = to_bytes(model)
    packed = {value.dtype for value in model.graph.initializers.values()}
    fused = fused and ir.DataType.INT2 not in packed
    session = open_session(content, fused=fused)
    version = require('onnxruntime').__version__
    matches = [
        compare_outputs(
            f'ONNX Runtime {version}' + (not fused) * ', not fused',
            expected,
            _joined([run(session, x) for x in inputs]),
            labels,
        )
    ]
    refused = {}
    try:
        openvino = require('openvino')
    except ImportError:
        openvino = None
    if openvino is not None:
        name = f'OpenVINO {openvino.__version__.partition("-")[0]}'
        try:
            found = _run_openvino(openvino, content, inputs)
            matches.append(compare_outputs(name, expected, found, labels))
        except RuntimeError as error:
            refused[name] = str(error).strip().splitlines()[-1]
    images, first = (x[:layer_images] for x in batches[0])
    layers = compare_layers(network, model, images, first)
    if not fused:
        return Verification(matches, layers, refused)
    operators, names = fusion(content)
    reasons = {name: _why_float(model, name) for name in names}
    return Verification(matches, layers, refused, operators, reasons)


def _why_float(model: ir.Model, name: str) -> str:
    """What keeps a convolution from running in integers."""
    node = next((n for n in model.graph if n.name == name), None)
    if node is None:
        return 'the runtime made it itself'
    given, weight = (value.producer() for value in node.inputs[:2])
    if given is None or given.op_type != 'DequantizeLinear':
        kind = 'an input' if given is None else given.op_type
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


def _torch_outputs(
    network: nn.Module, batches: Sequence[Tensor]
) -> list[np.ndarray]:
    found = []
    with torch.no_grad():
        for images in batches:
            leaves = torch.utils._pytree.tree_leaves(
                run_float(network, images)
            )
            found.append([x.numpy() for x in leaves if isinstance(x, Tensor)])
    return _joined(found)


def _joined(parts: Sequence[Sequence[np.ndarray]]) -> list[np.ndarray]:
    return [np.concatenate(x) for x in zip(*parts)]


def _run_openvino(
    openvino: Any, content: bytes, batches: Sequence[Tensor]
) -> list[np.ndarray]:
    core = openvino.Core()
    # Else it computes in half precision, where the processor can.
    compiled = core.compile_model(
        core.read_model(content, b''),
        'CPU',
        {'INFERENCE_PRECISION_HINT': 'f32'},
    )
    return _joined(
        [
            [np.array(x) for x in compiled(x.contiguous().numpy()).to_tuple()]
            for x in batches
        ]
    )
