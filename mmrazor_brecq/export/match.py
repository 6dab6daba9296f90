"""Compare a file with its network layer by layer, each on the same input."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Optional, Union

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from ..functional import tensors
from ..layers import products, quant_layers
from ..quantizers import ActivationQuantizer
from .calls import CallMatcher, find_first_calls, run_with
from .constants import rounded_bias
from .nodes import PRODUCT, QUANTIZER, array_of, only_user, users, weights
from .nodes import products as product_nodes
from .rewrite import CLIPS
from .session import look_inside

#: Operators between a layer and the quantizer after it that do not amplify
#: a difference.
PASSING = (*CLIPS, 'MaxPool', 'Add', 'Reshape', 'Transpose', 'Flatten')

#: How near two values are if only the order of a sum tells them apart: as a
#: fraction of the scale, and of the largest value.
TIE_OF_SCALE = 0.02
TIE_OF_LARGEST = 1e-5


@dataclass
class LayerMatch:
    """Difference of one layer or quantizer between the file and torch.

    Both get the same input, and their outputs are rounded to the same
    integers: those of the quantizer itself; for a layer those of the
    quantizer after it, or of an 8-bit grid of its range where none is near.

    Attributes:
        name (str): Name in the network.
        exact (float): Fraction of integers that are equal, 0 to 1.
        within (float): Fraction of integers that differ by at most one.
        largest (float): Largest difference before rounding, in scales.
        ties (float): Fraction of integers that differ only because the
            value lies on an edge between two: before rounding, the values
            are the same but for the order of sums and for biases that the
            target has as integers.
    """

    name: str
    exact: float
    within: float
    largest: float
    ties: float = 0.0


#: A forward hook: returns what replaces the output, None to keep it.
Hook = Callable[[nn.Module, tuple, Tensor], Optional[Tensor]]


class _FileValues:
    """Values of a file that layers and quantizers are compared with.

    Args:
        model (ir.Model): The file.
        inputs (Tensor): Its input.
    """

    def __init__(self, model: ir.Model, inputs: Tensor) -> None:
        #: By layer, the nodes that call it.
        self.calls: dict[str, list[ir.Node]] = {}
        for name, weight in weights(model):
            self.calls.setdefault(name, []).extend(users(weight))
        for name, node in product_nodes(model):
            self.calls.setdefault(name, []).append(node)
        #: By ``quantizer#call``, what it puts out.
        self.quantized = {
            node.metadata_props[QUANTIZER]: node.outputs[0]
            for node in model.graph
            if QUANTIZER in node.metadata_props
        }
        self.outputs = list(model.graph.outputs)
        values = [
            value(node)
            for nodes in self.calls.values()
            for node in nodes
            for value in (_output, _passed_on)
        ]
        values += [*self.quantized.values(), *self.outputs]
        self.content = look_inside(model, values, inputs)

    def of(self, value: ir.Value) -> Tensor:
        """Return the content of a value."""
        return self.content[value.name]


def compare_layers(
    network: nn.Module, model: ir.Model, images: Tensor, inputs: Tensor
) -> list[LayerMatch]:
    """Compare layer by layer, each on the same input.

    The network in torch runs once, with each layer's output and each
    quantized activation replaced by that of the file: a difference shows
    where it arises and nowhere else.

    Args:
        network (nn.Module): Quantized.
        model (ir.Model): Made from it.
        images (Tensor): Input of the network.
        inputs (Tensor): The same images, in the form that the file takes.

    Returns:
        list[LayerMatch]: In the order of the calls, and the network's
        outputs last.
    """
    file = _FileValues(model, inputs)
    layers: dict[str, nn.Module] = {
        **quant_layers(network),
        **products(network),
    }
    quantizers = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, ActivationQuantizer) and module.active
    }
    first = find_first_calls(network, images, {**layers, **quantizers})
    matches: list[LayerMatch] = []
    hooks = [
        layer.register_forward_hook(
            _layer_hook(name, first[name], file, matches)
        )
        for name, layer in layers.items()
    ] + [
        quantizer.register_forward_hook(
            _quantizer_hook(name, quantizer, first[name], file, matches)
        )
        for name, quantizer in quantizers.items()
    ]
    outputs = tensors(run_with(hooks, network, images))
    return matches + [
        _match_layer(value.name, expected, file.of(value), None)
        for expected, value in zip(outputs, file.outputs)
        if expected.is_floating_point()
    ]


def _layer_hook(
    name: str,
    first_calls: Sequence[int],
    file: _FileValues,
    matches: list[LayerMatch],
) -> Hook:
    """Return a hook that compares a layer's output and replaces it."""
    nodes = file.calls.get(name, [])
    matcher = CallMatcher(first_calls, len(nodes))

    def hook(
        module: nn.Module, args: tuple, output: Tensor
    ) -> Optional[Tensor]:
        def compare(index: int) -> Optional[LayerMatch]:
            found = file.of(_output(nodes[index]))
            if found.numel() != output.numel():
                return None
            found = found.view_as(output)
            return _match_layer(name, output, found, nodes[index])

        def fits(index: int) -> bool:
            match = compare(index)
            return match is not None and match.within > 0.5

        index = matcher.index(fits)
        if index is None:
            return None
        matches.append(compare(index) or LayerMatch(name, 0, 0, torch.inf))
        passed = file.of(_passed_on(nodes[index]))
        same_size = passed.numel() == output.numel()
        return passed.view_as(output) if same_size else None

    return hook


def _quantizer_hook(
    name: str,
    quantizer: ActivationQuantizer,
    first_calls: Sequence[int],
    file: _FileValues,
    matches: list[LayerMatch],
) -> Hook:
    """Return a hook that compares a quantizer's output and replaces it."""
    calls = itertools.count()
    by_input: dict[int, ir.Value] = {}
    for call, first in enumerate(first_calls):
        if f'{name}#{call}' in file.quantized:
            by_input.setdefault(first, file.quantized[f'{name}#{call}'])

    def hook(
        module: nn.Module, args: tuple, output: Tensor
    ) -> Optional[Tensor]:
        call = next(calls)
        value = file.quantized.get(f'{name}#{call}')
        if value is None:  # It became one with a call on the same input.
            value = by_input.get(first_calls[call])
        if value is None:  # Nothing uses it.
            return None
        found, scale = file.of(value), quantizer.scale
        if scale.numel() > 1:  # The file has the scales in another place.
            found = found * scale
        matches.append(_match_quantizer(name, args[0], output, found, scale))
        return found

    return hook


def _match(
    name: str,
    expected: Tensor,
    found: Tensor,
    scale: Union[float, Tensor],
    near: Tensor,
) -> LayerMatch:
    """Compare two tensors of one shape.

    Args:
        name (str): Of the layer or quantizer.
        expected (Tensor): Of the network in torch.
        found (Tensor): Of the file.
        scale (float | Tensor): Scale at which both are rounded.
        near (Tensor): Bool, where they are the same but for a tie.
    """
    a, b = expected.double() / scale, found.double() / scale
    same = (a == b) | (a.isnan() & b.isnan())
    integers_apart = torch.where(same, 0.0, (a.round() - b.round()).abs())
    ties = near & (integers_apart > 0)
    distance = torch.where(same, 0.0, (a - b).abs())
    return LayerMatch(
        name,
        exact=float((integers_apart == 0).double().mean()),
        within=float(((integers_apart <= 1) | ties).double().mean()),
        largest=float(distance.max()),
        ties=float(ties.double().mean()),
    )


def _match_layer(
    name: str, expected: Tensor, found: Tensor, call: Optional[ir.Node]
) -> LayerMatch:
    """Compare a layer's output, or that of the network if ``call`` is None."""
    largest = max(float(expected.abs().max()), float(found.abs().max()))
    scale = call and _scale_after(_output(call))
    scale = scale or largest / 255 or 1.0
    bound = torch.tensor(TIE_OF_SCALE * scale + TIE_OF_LARGEST * largest)
    rounded = None if call is None else rounded_bias(call)
    if rounded is not None:
        shape = [1, -1, *[1] * (expected.dim() - 2)]
        bound = bound + torch.from_numpy(np.array(rounded)).view(shape)
    near = (expected - found).abs() <= bound
    return _match(name, expected, found, scale, near)


def _match_quantizer(
    name: str, x: Tensor, expected: Tensor, found: Tensor, scale: Tensor
) -> LayerMatch:
    """Compare a quantizer's output.

    Args:
        name (str): Of the quantizer.
        x (Tensor): Its input.
        expected (Tensor): Its output in torch.
        found (Tensor): Its output in the file.
        scale (Tensor): Its scale, or one for each head.
    """
    scaled = (x / scale).double()
    from_edge = ((scaled - scaled.floor()) - 0.5).abs()
    bound = TIE_OF_SCALE + TIE_OF_LARGEST * float(scaled.abs().max())
    neighbors = (expected - found).abs() <= 1.01 * scale
    return _match(
        name, expected, found, scale, (from_edge <= bound) & neighbors
    )


def _scale_after(value: ir.Value) -> Optional[float]:
    """Return the scale of the quantizer that a value reaches, if any."""
    while True:
        for use in value.uses():
            if use.node.op_type == 'QuantizeLinear':
                return float(array_of(use.node.inputs[1]))
        node = only_user(value, *PASSING)
        if node is None:
            return None
        value = node.outputs[0]


def _output(call: ir.Node) -> ir.Value:
    """Return the output of a layer's call, its bias added."""
    value = call.outputs[0]
    if PRODUCT in call.metadata_props:
        return value
    add = only_user(value, 'Add')
    if call.op_type == 'MatMul' and add is not None:
        if any(x.is_initializer() for x in add.inputs):
            value = add.outputs[0]
    return value


def _passed_on(call: ir.Node) -> ir.Value:
    """Return what comes after a call: rounded, where the target rounds it."""
    value = _output(call)
    after = only_user(value, 'QuantizeLinear')
    while after and after.op_type != 'DequantizeLinear':
        after = only_user(after.outputs[0], 'Clip', 'DequantizeLinear')
    if after and QUANTIZER not in after.metadata_props:
        return after.outputs[0]
    return value
