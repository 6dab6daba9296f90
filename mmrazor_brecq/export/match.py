"""Comparing a file with its network layer by layer, each on the same input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Optional

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from ..functional import leaves, tensors
from ..graph import run_float
from ..layers import quant_layers
from ..quantizers import ActivationQuantizer
from .constants import rounded_bias
from .nodes import QUANTIZER, number, only_user, users, weights
from .rewrite import CLIPS
from .session import look_inside

#: What may stand between a layer and the quantizer after it without making
#: a difference larger.
PASSING = (*CLIPS, 'MaxPool', 'Add', 'Reshape', 'Transpose', 'Flatten')

#: How near two values are, in steps and relative to the largest one, if
#: only the order of a sum tells them apart.
TIE_STEPS = 0.02
TIE_FLOAT = 1e-5


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
        ties (float): Share of integers that differ though the values
            before rounding do not, but for the order of sums and the bias
            that the target has in integers: they lie on an edge.
    """

    name: str
    exact: float
    within: float
    largest: float
    ties: float = 0.0


def _match(
    name: str, own: Tensor, other: Tensor, step: float, near: Tensor
) -> LayerMatch:
    """Compare two tensors of one shape.

    Args:
        name (str): Whose they are.
        own (Tensor): Of the network in torch.
        other (Tensor): Of the file.
        step (float): What both are rounded by.
        near (Tensor): Bool, where they are the same but for a tie.
    """
    a, b = own.double() / step, other.double() / step
    same = (a == b) | (a.isnan() & b.isnan())
    apart = torch.where(same, 0.0, (a.round() - b.round()).abs())
    near = near & (apart > 0)
    distance = torch.where(same, 0.0, (a - b).abs())
    return LayerMatch(
        name,
        float((apart == 0).double().mean()),
        float(((apart <= 1) | near).double().mean()),
        float(distance.max()),
        float(near.double().mean()),
    )


def _match_layer(
    name: str, own: Tensor, other: Tensor, call: Optional[ir.Node]
) -> LayerMatch:
    """A layer's output, or with ``call=None`` that of the network."""
    largest = max(float(own.abs().max()), float(other.abs().max()))
    step = (call and _step_after(_value(call))) or largest / 255 or 1.0
    bound = torch.tensor(TIE_STEPS * step + TIE_FLOAT * largest)
    rounded = None if call is None else rounded_bias(call)
    if rounded is not None:
        shape = [1, -1, *[1] * (own.dim() - 2)]
        bound = bound + torch.from_numpy(np.array(rounded)).view(shape)
    return _match(name, own, other, step, (own - other).abs() <= bound)


def _match_quantizer(
    name: str, x: Tensor, own: Tensor, other: Tensor, step: float
) -> LayerMatch:
    """What a quantizer makes of ``x``, and what it is in the file."""
    place = (x / step).double()
    edge = ((place - place.floor()) - 0.5).abs()
    bound = TIE_STEPS + TIE_FLOAT * float(place.abs().max())
    return _match(
        name,
        own,
        other,
        step,
        (edge <= bound) & ((own - other).abs() <= 1.01 * step),
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


def _value(call: ir.Node) -> ir.Value:
    """What a call of a layer gives, its bias added."""
    value = call.outputs[0]
    add = only_user(value, 'Add')
    if call.op_type == 'MatMul' and add is not None:
        if any(x.is_initializer() for x in add.inputs):
            value = add.outputs[0]
    return value


def _given(call: ir.Node) -> ir.Value:
    """What the next ones get of it, another where the target rounds it."""
    value = _value(call)
    after = only_user(value, 'QuantizeLinear')
    while after and after.op_type != 'DequantizeLinear':
        after = only_user(after.outputs[0], 'Clip', 'DequantizeLinear')
    if after and QUANTIZER not in after.metadata_props:
        return after.outputs[0]
    return value


class _Calls:
    """Which call of a module in torch is which one in the file.

    A file has fewer where two calls on the same input are one, or where
    nobody uses what a call gives.

    Args:
        same (list[int]): For each call in torch, the first one that had
            the same input: itself, where none had.
        found (int): How many calls there are in the file.
    """

    def __init__(self, same: Sequence[int], found: int) -> None:
        self.same, self.found = same, found
        self.spare = len(same) - found
        self.taken: dict[int, int] = {}
        self.call = -1
        self.next = 0

    def place(self, fits: Any) -> Optional[int]:
        """Place in the file of the call that comes now, if it has one.

        Args:
            fits (callable): Whether the one at a place may be it; asked
                only while calls in torch are left over.
        """
        self.call += 1
        first = self.same[self.call] if self.call < len(self.same) else -1
        if self.spare > 0 and first in self.taken:
            self.spare -= 1
            return self.taken[first]
        if self.next >= self.found:
            return None
        if self.spare > 0 and not fits(self.next):
            self.spare -= 1
            return None
        self.taken.setdefault(first, self.next)
        self.next += 1
        return self.next - 1


def _same_inputs(
    network: nn.Module, images: Tensor, modules: dict[str, nn.Module]
) -> dict[str, list[int]]:
    """For each call of a module the first one that had the same input."""
    seen: dict[str, list[Tensor]] = {name: [] for name in modules}
    same: dict[str, list[int]] = {name: [] for name in modules}

    def watch(name: str, module: nn.Module) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            x = leaves((args, kwargs))[0]
            equal = (i for i, y in enumerate(seen[name]) if _equal(x, y))
            same[name].append(next(equal, len(seen[name])))
            seen[name].append(x.clone())

        return module.register_forward_pre_hook(hook, with_kwargs=True)

    _run_with([watch(n, m) for n, m in modules.items()], network, images)
    return same


def _equal(x: Tensor, y: Tensor) -> bool:
    return x.shape == y.shape and torch.equal(x, y)


def _run_with(hooks: list, network: nn.Module, images: Tensor) -> Any:
    """Run the network, and take the hooks off it again."""
    try:
        with torch.no_grad():
            return run_float(network, images)
    finally:
        for handle in hooks:
            handle.remove()


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
        list[LayerMatch]: In the order of the calls, and the network's
        outputs last.
    """
    calls: dict[str, list[ir.Node]] = {}
    for name, weight in weights(model):
        calls.setdefault(name, []).extend(users(weight))
    quantized = {
        node.metadata_props[QUANTIZER]: node.outputs[0]
        for node in model.graph
        if QUANTIZER in node.metadata_props
    }
    values = [
        f(x) for xs in calls.values() for x in xs for f in (_value, _given)
    ]
    ends = list(model.graph.outputs)
    found = look_inside(model, [*values, *quantized.values(), *ends], inputs)
    layers: dict[str, Any] = dict(quant_layers(network))
    quantizers = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, ActivationQuantizer) and module.active
    }
    same = _same_inputs(network, images, {**layers, **quantizers})
    matches: list[LayerMatch] = []

    def watch_layer(name: str, layer: nn.Module) -> Any:
        nodes = calls.get(name, [])
        order = _Calls(same[name], len(nodes))

        def hook(module: nn.Module, args: Any, out: Tensor) -> Any:
            def compared(place: int) -> Optional[LayerMatch]:
                other = found[_value(nodes[place]).name]
                if other.numel() != out.numel():
                    return None
                other = other.view_as(out)
                return _match_layer(name, out, other, nodes[place])

            def fits(place: int) -> bool:
                match = compared(place)
                return match is not None and match.within > 0.5

            place = order.place(fits)
            if place is None:
                return None
            matches.append(
                compared(place) or LayerMatch(name, 0, 0, torch.inf)
            )
            given = found[_given(nodes[place]).name]
            return given.view_as(out) if given.numel() == out.numel() else None

        return layer.register_forward_hook(hook)

    def watch_quantizer(name: str, quantizer: ActivationQuantizer) -> Any:
        count = [0]
        first: dict[int, ir.Value] = {}
        for call, origin in enumerate(same[name]):
            if f'{name}#{call}' in quantized:
                first.setdefault(origin, quantized[f'{name}#{call}'])

        def hook(module: nn.Module, args: Any, out: Tensor) -> Any:
            call, count[0] = count[0], count[0] + 1
            # The same as that of another call, or used by nobody.
            value = quantized.get(f'{name}#{call}') or first.get(
                same[name][call]
            )
            if value is None:
                return None
            own, step = found[value.name], float(quantizer.scale)
            matches.append(_match_quantizer(name, args[0], out, own, step))
            return own

        return quantizer.register_forward_hook(hook)

    out = _run_with(
        [
            *(watch_layer(*pair) for pair in layers.items()),
            *(watch_quantizer(*pair) for pair in quantizers.items()),
        ],
        network,
        images,
    )
    return matches + [
        _match_layer(value.name, own, found[value.name], None)
        for own, value in zip(tensors(out), ends)
        if own.is_floating_point()
    ]
