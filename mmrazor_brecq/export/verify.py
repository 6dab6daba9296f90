"""The proof that a file is the network that it was made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Optional

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from ..graph import run_float
from ..layers import quant_layers
from ..quantizers import ActivationQuantizer
from .nodes import QUANTIZER, number, only_user, users, weights
from .optional import require
from .rewrite import CLIPS
from .session import fusion, look_inside, open_session, run, to_bytes

#: What may stand between a layer and the quantizer after it without making
#: a difference larger.
PASSING = (*CLIPS, 'MaxPool', 'Add', 'Reshape', 'Transpose', 'Flatten')


@dataclass
class LayerMatch:
    """How far one layer or quantizer of the file is from that in torch.

    Both are given the same input, and what they put out is rounded to the
    same integers: those of the quantizer itself; for a layer those of the
    quantizer after it, or where none is near an 8-bit grid of its range.

    Attributes:
        name (str): Its name in the network.
        exact (float): Share of integers that are equal, 0 to 1.
        within (float): Share of integers that differ by one at most.
        largest (float): The largest difference before rounding, in steps.
    """

    name: str
    exact: float
    within: float
    largest: float


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
                    'itself is the same'
                )
        return None


def _match(name: str, own: Tensor, other: Tensor, step: float) -> LayerMatch:
    own, other = own / step, other / step
    apart = (own.round() - other.round()).abs()
    return LayerMatch(
        name,
        float((apart == 0).double().mean()),
        float((apart <= 1).double().mean()),
        float((own - other).abs().max()),
    )


def _step_after(value: ir.Value) -> Optional[float]:
    """The step of the quantizer that a value comes to, if one is near."""
    while True:
        for use in value.uses():
            if use.node.op_type == 'QuantizeLinear':
                return float(number(use.node.inputs[1]))
        node = only_user(value, *PASSING)
        if node is None:
            return None
        value = node.outputs[0]


def _outputs(model: ir.Model) -> dict[str, list[tuple[ir.Value, ir.Value]]]:
    """For each layer's calls, what it gives and what the next ones get of
    it, which differ where the target has it rounded.
    """
    found: dict[str, list] = {}
    for name, weight in weights(model):
        for node in users(weight):
            value = node.outputs[0]
            add = only_user(value, 'Add')
            if node.op_type == 'MatMul' and add is not None:
                if any(x.is_initializer() for x in add.inputs):
                    value = add.outputs[0]
            given = value
            q = only_user(value, 'QuantizeLinear')
            dq = only_user(q.outputs[0], 'DequantizeLinear') if q else None
            if dq is not None and QUANTIZER not in dq.metadata_props:
                given = dq.outputs[0]
            found.setdefault(name, []).append((value, given))
    return found


def compare_layers(
    network: nn.Module, model: ir.Model, images: Tensor, inputs: Tensor
) -> list[LayerMatch]:
    """Compare layer by layer, each on the same input.

    The network in torch runs once, with each layer's output and each
    quantized activation replaced by what the file gives there: a difference
    shows where it is made and nowhere else.

    Args:
        network (nn.Module): Quantized.
        model (ir.Model): Made from it.
        images (Tensor): The network's input.
        inputs (Tensor): The file's input for the same images.

    Returns:
        list[LayerMatch]: In the order of the calls.
    """
    outputs = _outputs(model)
    quantized = {
        node.metadata_props[QUANTIZER]: node.outputs[0]
        for node in model.graph
        if QUANTIZER in node.metadata_props
    }
    values = [v for pairs in outputs.values() for pair in pairs for v in pair]
    found = look_inside(model, values + list(quantized.values()), inputs)
    matches: list[LayerMatch] = []
    hooks = []

    def watch_layer(name: str, layer: nn.Module) -> None:
        calls = iter(outputs.get(name, []))

        def hook(module: nn.Module, args: Any, out: Tensor) -> Any:
            pair = next(calls, None)
            if pair is None:
                return None
            own, given = (found[v.name] for v in pair)
            step = _step_after(pair[0]) or float(out.abs().max()) / 255
            matches.append(_match(name, out, own.view_as(out), step))
            return given.view_as(out)

        hooks.append(layer.register_forward_hook(hook))

    def watch_quantizer(name: str, quantizer: ActivationQuantizer) -> None:
        calls = [0]

        def hook(module: nn.Module, args: Any, out: Tensor) -> Any:
            value = quantized.get(f'{name}#{calls[0]}')
            calls[0] += 1
            if value is None:  # The same as that of another call.
                return None
            own, step = found[value.name], float(quantizer.scale)
            matches.append(_match(name, out, own, step))
            return own

        hooks.append(quantizer.register_forward_hook(hook))

    for name, layer in quant_layers(network).items():
        watch_layer(name, layer)
    for name, module in network.named_modules():
        if isinstance(module, ActivationQuantizer) and module.active:
            watch_quantizer(name, module)
    try:
        with torch.no_grad():
            run_float(network, images)
    finally:
        for handle in hooks:
            handle.remove()
    return matches


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
