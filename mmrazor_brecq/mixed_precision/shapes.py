"""What a layer costs depends on its shape: found in one forward pass."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..graph import run_float
from ..layers import quant_layers


@dataclass(frozen=True)
class CallShape:
    """The work of one call of a layer, for one image.

    Attributes:
        op (str): ``conv1d``, ``conv2d``, ``conv3d`` or ``linear``.
        input (tuple[int]): Shape of its input without the batch: channels
            and sizes of a convolution; of a linear layer the features come
            last.
        weight (tuple[int]): Shape of its weight.
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
        """Multiplications, each with its addition."""
        return math.prod(self.output) * math.prod(self.weight[1:])

    @property
    def key(self) -> str:
        """Names the work: calls of equal keys take equal time.

        Such as ``conv2d 24x16x16 w48x24x3x3 s2x2 p1x1 d1x1 g1``.
        """
        parts = [self.op, _by(self.input), f'w{_by(self.weight)}']
        if self.stride:
            parts += [
                f's{_by(self.stride)}',
                f'p{_by(self.padding)}',
                f'd{_by(self.dilation)}',
                f'g{self.groups}',
            ]
        return ' '.join(parts)


def _by(sizes: tuple[int, ...]) -> str:
    return 'x'.join(map(str, sizes))


@dataclass(frozen=True)
class LayerShape:
    """What the cost of a layer depends on.

    Attributes:
        name (str): The layer.
        parameters (int): Numbers in its weight.
        steps (int): Quantization steps of its weight.
        calls (tuple[CallShape]): One for each call in a forward pass.
    """

    name: str
    parameters: int
    steps: int
    calls: tuple[CallShape, ...]


@dataclass(frozen=True)
class ModelShape:
    """What the cost of a model depends on, beside the widths.

    Attributes:
        layers (tuple[LayerShape]): In the order of their first calls.
        other_parameters (int): Numbers that are not quantized.
    """

    layers: tuple[LayerShape, ...]
    other_parameters: int


@torch.no_grad()
def model_shape(network: nn.Module, example: Tensor) -> ModelShape:
    """See the shapes in a forward pass.

    Args:
        network (nn.Module): A network whose layers have quantizers.
        example (Tensor): N x ... preprocessed inputs.
    """
    layers = quant_layers(network)
    calls: dict[str, list[CallShape]] = {}
    hooks = [
        layer.register_forward_hook(
            lambda layer, args, out, name=name: calls.setdefault(
                name, []
            ).append(_call_shape(layer, args[0].shape[1:], out.shape[1:]))
        )
        for name, layer in layers.items()
    ]
    try:
        run_float(network, example)
    finally:
        for hook in hooks:
            hook.remove()
    shapes = [
        LayerShape(
            name,
            layers[name].stored_weight.numel(),
            layers[name].weight_quantizer.scale.numel(),
            tuple(found),
        )
        for name, found in calls.items()
    ]
    numbers = sum(p.numel() for p in network.parameters())
    own = sum(shape.parameters for shape in shapes)
    return ModelShape(tuple(shapes), numbers - own)


def _call_shape(layer: Any, inputs: Any, outputs: Any) -> CallShape:
    shapes = tuple(inputs), tuple(layer.stored_weight.shape), tuple(outputs)
    if isinstance(layer, nn.Linear):
        return CallShape('linear', *shapes)
    padding = layer.padding
    if isinstance(padding, str):
        padding = [
            d * (k - 1) // 2 if padding == 'same' else 0
            for d, k in zip(layer.dilation, layer.kernel_size)
        ]
    return CallShape(
        f'conv{len(layer.kernel_size)}d',
        *shapes,
        tuple(layer.stride),
        tuple(padding),
        tuple(layer.dilation),
        layer.groups,
    )
