"""Modules that emit nodes of ONNX in place of quantizers.

They put QuantizeLinear and DequantizeLinear into the graph, with the
integers as they are: nothing is rounded again, so what was learned survives.
"""

from __future__ import annotations

import copy
from typing import Optional

import torch
from torch import Tensor, nn

from ..layers import quant_layers
from ..quantizers import ActivationQuantizer, WeightQuantizer
from .nodes import LAYER, QUANTIZER

#: The opset that torch emits. All our operators exist in it, and later ones
#: have not changed them.
OPSET = 21


def _node(
    op: str,
    inputs: tuple[Tensor, ...],
    dtype: torch.dtype,
    axis: Optional[int] = None,
    metadata: Optional[dict[str, str]] = None,
) -> Tensor:
    """Emit one node of ONNX, whose output has the shape of its input.

    Args:
        op (str): Type of the operator.
        inputs (tuple[Tensor]): Its inputs.
        dtype (torch.dtype): Type of the output.
        axis (int, optional): Axis of the scales, where they have one.
        metadata (dict, optional): Metadata of the node.
    """
    return torch.onnx.ops.symbolic(
        op,
        inputs,
        {} if axis is None else dict(axis=axis),
        dtype=dtype,
        shape=inputs[0].shape,
        version=OPSET,
        metadata_props=metadata,
    )


class WeightNodes(nn.Module):
    """DequantizeLinear on the integers of a layer.

    Args:
        quantizer (WeightQuantizer): Of the layer.
        name (str): Name of the layer.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, quantizer: WeightQuantizer, name: str) -> None:
        super().__init__()
        self.name = name
        self.register_buffer('scale', quantizer.scale.clone())
        self.register_buffer('zero_point', quantizer.zero_point.clone())

    def forward(self, weight: Tensor) -> Tensor:
        scale, zero_point = self.scale, self.zero_point
        if len(scale) == 1 and weight.shape[0] > 1:
            scale, zero_point = (
                value.expand(weight.shape[0]) for value in (scale, zero_point)
            )
        return _node(
            'DequantizeLinear',
            (weight, scale, zero_point),
            scale.dtype,
            axis=0,
            metadata={LAYER: self.name},
        )


class ActivationNodes(nn.Module):
    """Clip (below 8 bits), QuantizeLinear and DequantizeLinear.

    The clip comes first, on real values, where every runtime takes it. Its
    bounds are points of the grid, so it changes nothing else.

    Args:
        quantizer (ActivationQuantizer): Active.
        name (str): Name of the quantizer.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, quantizer: ActivationQuantizer, name: str) -> None:
        super().__init__()
        low, high = quantizer.grid.range
        self.name = name
        self.dtype = torch.int8 if low < 0 else torch.uint8
        scale, zero_point = quantizer.scale, int(quantizer.zero_point)
        self.register_buffer('scale', scale.clone())
        self.register_buffer(
            'zero_point', torch.tensor(zero_point, dtype=self.dtype)
        )
        self.bounds: Optional[tuple[float, float]] = None
        if quantizer.grid.bits < 8:
            self.bounds = (
                float((low - zero_point) * scale),
                float((high - zero_point) * scale),
            )
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        if self.bounds is not None:
            x = x.clamp(*self.bounds)
        grid = self.scale, self.zero_point
        metadata = {QUANTIZER: f'{self.name}#{self.calls}'}
        self.calls += 1
        q = _node('QuantizeLinear', (x, *grid), self.dtype)
        return _node(
            'DequantizeLinear', (q, *grid), x.dtype, metadata=metadata
        )


def with_nodes(network: nn.Module) -> nn.Module:
    """Copy a network, its quantizers replaced by modules that emit nodes.

    Args:
        network (nn.Module): Quantized; it is left as it is.
    """
    network = copy.deepcopy(network)
    for name, layer in quant_layers(network).items():
        layer.add_module(
            'weight_quantizer', WeightNodes(layer.weight_quantizer, name)
        )
    for name, module in list(network.named_modules()):
        if getattr(module, 'inplace', False):
            # The graph is the same, and torch takes half as long for it.
            module.inplace = False
        if isinstance(module, ActivationQuantizer) and module.active:
            parent, _, child = name.rpartition('.')
            network.get_submodule(parent).add_module(
                child, ActivationNodes(module, name)
            )
    return network
