"""The proof that a file is the network that it was made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Optional

import numpy as np
import onnx_ir as ir
from torch import Tensor, nn

from .._requirements import require
from .constants import compare_constants
from .match import LayerMatch, compare_layers
from .nodes import only_user
from .noise import joined, output_noise, torch_outputs
from .session import fusion, open_session, run, to_bytes


@dataclass
class Match:
    """How far a whole file is from the network in torch.

    Attributes:
        runtime (str): What ran it.
        images (int): How many were compared.
        agreement (float, optional): Share of images (in maps: of places)
            with the same best class, 0 to 1; None where the last output
            is not one of classes.
        largest (float): Largest difference, relative to the largest output.
        mean (float): Mean difference, relative to the mean magnitude.
        accuracy (float, optional): Its top-1, in per cent.
        accuracy_torch (float, optional): That of the network in torch.
        tied (float): Share of images with another best class that the
            network itself tells from the first no better than by chance.
        near (float): Share of elements that are as near as the network's
            own noise, of the output that has fewest.
    """

    runtime: str
    images: int
    agreement: Optional[float]
    largest: float
    mean: float
    accuracy: Optional[float] = None
    accuracy_torch: Optional[float] = None
    tied: float = 0.0
    near: float = 1.0

    def problem(self, least: float) -> Optional[str]:
        """What falls short of ``least``, a share of 0 to 1, if anything."""
        said = None
        if not self.near >= least:
            said = f'are equal but for noise in {self.near:.2%} of the outputs'
        if self.agreement is not None:
            if not self.agreement + self.tied >= least:
                said = (
                    f'agree on {self.agreement:.2%} of {self.images} images '
                    f'({self.tied:.2%} more are ties)'
                )
        return (
            said and f'{self.runtime} and torch {said}, expected {least:.2%}'
        )


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
        constants (dict[str, str]): Layers and quantizers whose weights,
            scales or ranges are not those of the network, and how.
    """

    matches: list[Match]
    layers: list[LayerMatch]
    refused: dict[str, str] = field(default_factory=dict)
    operators: dict[str, int] = field(default_factory=dict)
    float_convolutions: dict[str, str] = field(default_factory=dict)
    constants: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain Python, for a JSON file."""
        return asdict(self)

    def problem(
        self, runtime: str, agreement: float, exact: float, within: float
    ) -> Optional[str]:
        """What falls short, if anything does.

        Args:
            runtime (str): The one that the file is for. It must not refuse
                it, and its outputs count; where it is not here, those of
                ONNX Runtime.
            agreement (float): Least share of images of the same class, and
                of outputs that are the same but for noise.
            exact (float): Least share of equal elements in every layer,
                ties among them.
            within (float): Least share of those within one step.
        """
        for name, reason in self.constants.items():
            return f'{name} is another one than in the network: {reason}'
        for layer in self.layers:
            if not (
                layer.exact + layer.ties >= exact and layer.within >= within
            ):
                return (
                    f'{layer.name} is the first layer that differs: '
                    f'{layer.exact + layer.ties:.2%} of its integers are '
                    f'equal (ties among them) and '
                    f'{layer.within:.2%} within one step, expected '
                    f'{exact:.2%} and {within:.2%}; the largest difference '
                    f'is {layer.largest:.3g} steps'
                )
        for name, reason in self.refused.items():
            if runtime and name.startswith(runtime):
                return f'{name} does not take it: {reason}'
        said = self._judge(runtime).problem(agreement)
        return said and (
            f'{said}, though every layer by itself is the same: the runtime '
            'computes otherwise than the standard has it; '
            '--least-agreement (`least_agreement`) is what is expected'
        )

    def others(self, runtime: str, agreement: float) -> list[str]:
        """What other runtimes make of the file, where that is another thing.

        Args:
            runtime (str): The one that the file is for.
            agreement (float): As for :meth:`problem`.
        """
        judge = self._judge(runtime)
        return [
            f'{said}: {match.runtime} computes something else from this file '
            f'than the standard has it. It is for {runtime or judge.runtime},'
            f' and proven with {judge.runtime}'
            for match in self.matches
            if match is not judge and (said := match.problem(agreement))
        ]

    def _judge(self, runtime: str) -> Match:
        """What the runtime itself, or else the first one, says."""
        own = [m for m in self.matches if m.runtime.startswith(runtime)]
        return (own if runtime and own else self.matches)[0]


def compare_outputs(
    runtime: str,
    expected: Sequence[np.ndarray],
    found: Sequence[np.ndarray],
    labels: Optional[np.ndarray] = None,
    noise: Optional[Sequence[float]] = None,
) -> Match:
    """Compare outputs of the same images.

    Args:
        runtime (str): What ran the file.
        expected (list[numpy.ndarray]): Outputs of the network in torch,
            N x ... each.
        found (list[numpy.ndarray]): Those of the file.
        labels (numpy.ndarray, optional): N true classes.
        noise (list[float], optional): What each output may differ by.
    """
    pairs = [
        (x.astype('f8'), y.astype('f8').reshape(x.shape))
        for x, y in zip(expected, found)
    ]
    noise = noise or [0.0] * len(pairs)
    apart = [np.where(x == y, 0, np.abs(x - y)) for x, y in pairs]
    match = Match(
        runtime,
        images=len(expected[-1]) if expected[-1].ndim else 1,
        agreement=None,
        largest=max(
            float(d.max(initial=0) / max(np.abs(x).max(initial=0), 1e-30))
            for d, (x, _) in zip(apart, pairs)
        ),
        mean=max(
            float(d.mean() / max(np.abs(x).mean(), 1e-30))
            for d, (x, _) in zip(apart, pairs)
        ),
        near=min(float((d <= n).mean()) for d, n in zip(apart, noise)),
    )
    ours, theirs = pairs[-1]
    if is_of_classes(expected[-1]):
        best, best_found = ours.argmax(1), theirs.argmax(1)
        second = np.take_along_axis(ours, best_found[:, None], 1)[:, 0]
        ties = ours.max(1) - second <= noise[-1]
        match.agreement = float((best == best_found).mean())
        match.tied = float((ties & (best != best_found)).mean())
        if labels is not None and best.shape == labels.shape:
            match.accuracy = 100 * float((best_found == labels).mean())
            match.accuracy_torch = 100 * float((best == labels).mean())
    return match


def is_of_classes(output: np.ndarray) -> bool:
    """Whether it is N x K x ... scores of K classes: 2 or more of them."""
    floating = np.issubdtype(output.dtype, np.floating)
    return floating and output.ndim in (2, 4, 5) and output.shape[1] > 1


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
    expected = torch_outputs(network, [x for x, _ in batches])
    inputs = [x for _, x in batches]
    content = to_bytes(model)
    packed = {value.dtype for value in model.graph.initializers.values()}
    fused = fused and ir.DataType.INT2 not in packed
    version = require('onnxruntime').__version__
    name = f'ONNX Runtime {version}' + (not fused) * ', not fused'
    found = _run_onnxruntime(content, inputs, fused)
    noise = output_noise(network, content, batches, expected)
    matches = [compare_outputs(name, expected, found, labels, noise)]
    refused = {}
    try:
        openvino = require('openvino')
    except ImportError:
        openvino = None
    if openvino is not None:
        name = f'OpenVINO {openvino.__version__.partition("-")[0]}'
        try:
            found = _run_openvino(openvino, content, inputs)
            matches.append(
                compare_outputs(name, expected, found, labels, noise)
            )
        except RuntimeError as error:
            refused[name] = str(error).strip().splitlines()[-1]
    images, first = (x[:layer_images] for x in batches[0])
    known = Verification(
        matches,
        compare_layers(network, model, images, first),
        refused,
        constants=compare_constants(network, model),
    )
    if fused:
        known.operators, names = fusion(content)
        known.float_convolutions = {n: _why_float(model, n) for n in names}
    return known


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


def _run_onnxruntime(
    content: bytes, batches: Sequence[Tensor], fused: bool
) -> list[np.ndarray]:
    session = open_session(content, fused=fused)
    return joined([run(session, x) for x in batches])


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
    return joined(
        [
            [np.array(x) for x in compiled(x.contiguous().numpy()).to_tuple()]
            for x in batches
        ]
    )
