"""Find the shapes of layers, on which costs depend, in one forward pass."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..graph import Inputs, run_float
from ..layers import MatrixProduct, QuantLayer, products, quant_layers


@dataclass(frozen=True)
class CallShape:
    """Shapes of one call of a layer, for one image.

    Attributes:
        op (str): ``conv1d``, ``conv2d``, ``conv3d``, ``linear``, or
            ``matmul`` for a product of activations.
        input (tuple[int]): Shape of its input without the batch: channels
            and sizes for a convolution; for a linear layer the features come
            last.
        weight (tuple[int]): Shape of its weight; of a product, that of the
            second operand for one head, columns first.
        output (tuple[int]): Shape of its output without the batch.
        stride (tuple[int]): Of a convolution; empty for a linear layer.
        padding (tuple[int]): Likewise, on each side.
        dilation (tuple[int]): Likewise.
        groups (int): Likewise; 1 for a linear layer.
    """

    op: str
    input: tuple[int, ...]
    weight: tuple[int, ...]
    output: tuple[int, ...]
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1

    @property
    def macs(self) -> int:
        """Return the number of multiply-adds."""
        return math.prod(self.output) * math.prod(self.weight[1:])

    @property
    def key(self) -> str:
        """Return a text that is the same for calls that take equal time.

        Such as ``conv2d 24x16x16 w48x24x3x3 s2x2 p1x1 d1x1 g1``.
        """
        parts = [self.op, _join(self.input), f'w{_join(self.weight)}']
        if self.stride:
            parts += [
                f's{_join(self.stride)}',
                f'p{_join(self.padding)}',
                f'd{_join(self.dilation)}',
                f'g{self.groups}',
            ]
        return ' '.join(parts)


def _join(sizes: Sequence[int]) -> str:
    return 'x'.join(map(str, sizes))


@dataclass(frozen=True)
class LayerShape:
    """Properties of a layer on which its cost depends.

    Attributes:
        name (str): Name of the layer.
        parameters (int): Elements of its weight, 0 for a product.
        scales (int): Scales of its weight.
        calls (tuple[CallShape]): One for each call in a forward pass.
    """

    name: str
    parameters: int
    scales: int
    calls: tuple[CallShape, ...]


@dataclass(frozen=True)
class ModelShape:
    """Properties of a model on which its cost depends, beside its bits.

    Attributes:
        layers (tuple[LayerShape]): In the order of their first calls.
        other_parameters (int): Elements that are not quantized.
    """

    layers: tuple[LayerShape, ...]
    other_parameters: int


@torch.no_grad()
def model_shape(network: nn.Module, example: Inputs) -> ModelShape:
    """Find all shapes of a network in a forward pass.

    Args:
        network (nn.Module): A network whose layers have quantizers.
        example (Tensor | Samples): N x ... preprocessed images.
    """
    layers = {**quant_layers(network), **products(network)}
    shapes = [
        LayerShape(name, *_weight_sizes(layers[name]), tuple(calls))
        for name, calls in _record_calls(network, layers, example).items()
    ]
    elements = sum(p.numel() for p in network.parameters())
    quantized = sum(shape.parameters for shape in shapes)
    return ModelShape(tuple(shapes), elements - quantized)


def _weight_sizes(layer: nn.Module) -> tuple[int, int]:
    """Return the elements and the scales of a layer's weight."""
    if not isinstance(layer, QuantLayer):
        return 0, 0
    scale = layer.weight_quantizer.scale
    return layer.stored_weight.numel(), scale.numel()


def _record_calls(
    network: nn.Module, layers: Mapping[str, nn.Module], example: Inputs
) -> dict[str, list[CallShape]]:
    """Run a network, and return the calls of its layers, in their order."""
    calls: dict[str, list[CallShape]] = {}
    hooks = [
        layer.register_forward_hook(
            lambda layer, args, out, name=name: calls.setdefault(
                name, []
            ).append(_call_shape(layer, args, out, len(example)))
        )
        for name, layer in layers.items()
    ]
    try:
        run_float(network, example)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _call_shape(
    layer: nn.Module, args: tuple, out: Tensor, images: int
) -> CallShape:
    if isinstance(layer, MatrixProduct):
        left, right = args
        return CallShape(
            'matmul',
            _of_one_image(left, images),
            (right.shape[-1], right.shape[-2]),
            _of_one_image(out, images),
        )
    assert isinstance(layer, QuantLayer)
    inputs, outputs = args[0].shape[1:], out.shape[1:]
    shapes = tuple(inputs), tuple(layer.stored_weight.shape), tuple(outputs)
    if not isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return CallShape('linear', *shapes)
    padding: Any = layer.padding
    if isinstance(padding, str):
        padding = tuple(
            d * (k - 1) // 2 if padding == 'same' else 0
            for d, k in zip(layer.dilation, layer.kernel_size)
        )
    return CallShape(
        f'conv{len(layer.kernel_size)}d',
        *shapes,
        tuple(layer.stride),
        tuple(padding),
        tuple(layer.dilation),
        layer.groups,
    )


def _of_one_image(x: Tensor, images: int) -> tuple[int, ...]:
    """Return a shape for one image; windows and heads may come first."""
    first = x.shape[0] // images
    return tuple(x.shape[1:]) if first < 2 else (first, *x.shape[1:])
