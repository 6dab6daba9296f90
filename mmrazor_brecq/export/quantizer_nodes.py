"""Modules that emit nodes of ONNX in place of quantizers.

They put QuantizeLinear and DequantizeLinear into the graph, with the
integers as they are: nothing is rounded again, so what was learned survives.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Optional, Union

import torch
from torch import Tensor, nn

from ..layers import MatrixProduct, products, quant_layers
from ..quantizers import ActivationQuantizer, WeightQuantizer
from .nodes import LAYER, PRODUCT, QUANTIZER

#: The opset that torch emits. All our operators exist in it, and later ones
#: have not changed them.
OPSET = 21


#: Types of integers by whether they have more than 8 bits and are signed.
DTYPES = {
    (False, False): torch.uint8,
    (False, True): torch.int8,
    (True, False): torch.uint16,
    (True, True): torch.int16,
}


def _node(
    op: str,
    inputs: tuple[Tensor, ...],
    dtype: torch.dtype,
    axis: Optional[int] = None,
    metadata: Optional[dict[str, str]] = None,
    shape: Optional[Sequence[Union[int, torch.SymInt]]] = None,
) -> Tensor:
    """Emit one node of ONNX.

    Args:
        op (str): Type of the operator.
        inputs (tuple[Tensor]): Its inputs.
        dtype (torch.dtype): Type of the output.
        axis (int, optional): Axis of the scales, where they have one.
        metadata (dict, optional): Metadata of the node.
        shape (sequence, optional): Shape of the output; by default that of
            the first input.
    """
    return torch.onnx.ops.symbolic(
        op,
        inputs,
        {} if axis is None else dict(axis=axis),
        dtype=dtype,
        shape=inputs[0].shape if shape is None else shape,
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

    Where each head has a scale, the activation is divided by them first, and
    its integers have a scale of 1: no runtime multiplies integers of several
    scales. What comes out is real only times :attr:`factor`.

    Attributes:
        factor (Tensor, optional): The scales, H x 1 x 1, if there are
            several.

    Args:
        quantizer (ActivationQuantizer): Active.
        name (str): Name of the quantizer.
    """

    scale: Tensor
    zero_point: Tensor
    factor: Optional[Tensor]

    def __init__(self, quantizer: ActivationQuantizer, name: str) -> None:
        super().__init__()
        low, high = quantizer.grid.range
        self.name = name
        self.dtype = DTYPES[quantizer.grid.bits > 8, low < 0]
        scale, zero_point = quantizer.scale, int(quantizer.zero_point)
        by_head = scale.numel() > 1
        self.register_buffer('factor', scale.clone() if by_head else None)
        scale = scale.new_ones(()) if by_head else scale
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
        if self.factor is not None:
            x = x / self.factor
        if self.bounds is not None:
            x = x.clamp(*self.bounds)
        grid = self.scale, self.zero_point
        metadata = {QUANTIZER: f'{self.name}#{self.calls}'}
        self.calls += 1
        q = _node('QuantizeLinear', (x, *grid), self.dtype)
        return _node(
            'DequantizeLinear', (q, *grid), x.dtype, metadata=metadata
        )


class ProductNodes(nn.Module):
    """MatMul of two activations, times the scales of their heads.

    Args:
        product (MatrixProduct): Its quantizers are nodes already.
        name (str): Name of the product.
    """

    def __init__(self, product: MatrixProduct, name: str) -> None:
        super().__init__()
        self.name = name
        self.left_quantizer = product.left_quantizer
        self.right_quantizer = product.right_quantizer

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        left, right = self.left_quantizer(left), self.right_quantizer(right)
        batch = torch.broadcast_shapes(left.shape[:-2], right.shape[:-2])
        shape = [*batch, left.shape[-2], right.shape[-1]]
        metadata = {PRODUCT: self.name}
        factors: list[Tensor] = [
            quantizer.factor  # type: ignore[misc]
            for quantizer in (self.left_quantizer, self.right_quantizer)
            if getattr(quantizer, 'factor', None) is not None
        ]
        out = _node(
            'MatMul',
            (left, right),
            left.dtype,
            metadata=None if factors else metadata,
            shape=shape,
        )
        if not factors:
            return out
        factor = factors[0] if len(factors) == 1 else factors[0] * factors[1]
        return _node('Mul', (out, factor), out.dtype, metadata=metadata)


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
    for name, product in products(network).items():
        parent, _, child = name.rpartition('.')
        network.get_submodule(parent).add_module(
            child, ProductNodes(product, name)
        )
    return network
