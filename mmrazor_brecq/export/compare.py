"""Comparing a file with its network layer by layer, each on the same input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Optional

import onnx_ir as ir
import torch
from torch import Tensor, nn

from ..graph import run_float
from ..layers import quant_layers
from ..quantizers import ActivationQuantizer
from .nodes import QUANTIZER, number, only_user, users, weights
from .rewrite import CLIPS
from .session import look_inside

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
            after = only_user(value, 'QuantizeLinear')
            while after and after.op_type != 'DequantizeLinear':
                after = only_user(after.outputs[0], 'Clip', 'DequantizeLinear')
            if after and QUANTIZER not in after.metadata_props:
                given = after.outputs[0]
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
