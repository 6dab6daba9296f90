"""Biases that make up for what rounded weights do to a layer's mean output.

Where the inputs of a layer are far from zero on average, an error of a weight
is above all a shift of the output, the same at each position. A bias takes
that back, while roundings would have to be chosen for it. Such inputs are
looked for where images are far from zero: not normalized, or much brighter
than those that a network was made for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..activations import CachedBatches
from ..graph import Unit
from ..layers import QuantLayer
from ..runtime.distributed import local_share, sum_over_processes
from .open_parts import open_layers
from .unit import UnitData

#: Fraction of the mean square of images that is their squared mean, from which
#: on they are far from zero.
LIMIT = 0.5
#: Images that are looked at.
IMAGES = 8


@torch.no_grad()
def far_from_zero(images: CachedBatches) -> bool:
    """Return whether images are far from zero on average.

    Args:
        images (CachedBatches): Calibration images, N x C x ... or what has
            them as ``images``.
    """
    some = images.take(torch.arange(min(len(images), IMAGES)))
    x = getattr(some, 'images', some)
    if not (isinstance(x, Tensor) and x.is_floating_point() and x.dim() > 2):
        return False
    channels = x.double().transpose(0, 1).flatten(1)
    squared_mean = channels.mean(1).square().sum()
    mean_square = channels.square().mean(1).sum()
    found = sum_over_processes(torch.stack([squared_mean, mean_square]))
    return bool(found[0] > LIMIT * found[1])


def center(
    unit: Unit, data: UnitData, images: int, batch_size: int
) -> list[QuantLayer]:
    """Tell the layers of a unit their mean inputs.

    From then on their biases make up for what rounding does to the mean.

    Args:
        unit (Unit): The unit, whose quantizers have scales. Its layers that
            have a bias, and are not frozen yet, know
            :attr:`QuantLayer.mean_input` afterwards.
        data (UnitData): Its activations.
        images (int): Number of images in all processes together that means
            are of.
        batch_size (int): Maximum number of images at a time.

    Returns:
        list[QuantLayer]: These layers.
    """
    layers = [x for x in open_layers(unit.module) if x.bias is not None]
    trained = torch.arange(min(local_share(images), data.trained))
    sums = _sums(unit, data, data.parts(trained, batch_size), layers)
    for layer in layers:
        total, positions = sums.get(
            layer, (torch.zeros_like(layer.stored_weight), 0)
        )
        count = float(sum_over_processes(torch.tensor(float(positions))))
        layer.mean_input = sum_over_processes(total) / max(1.0, count)
    return layers


@torch.no_grad()
def _sums(
    unit: Unit,
    data: UnitData,
    parts: Sequence[Tensor],
    layers: Sequence[QuantLayer],
) -> dict[QuantLayer, tuple[Tensor, int]]:
    """Return the sum of inputs that each weight sees, and of how many.

    Returns:
        dict: A tensor of the shape of the weight, and the number of positions
        of the output, for each layer that runs.
    """
    sums: dict[QuantLayer, tuple[Tensor, int]] = {}

    def add(layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        assert isinstance(layer, QuantLayer)
        given: dict[Any, Any] = {**dict(enumerate(args)), **kwargs}
        key = next(k for k, v in given.items() if isinstance(v, Tensor))
        x, count = layer.input_quantizer(given[key]), 1
        if len(given) == 1 and x.dim() >= layer.stored_weight.dim():
            # One image with the mean of all, which is enough.
            x, count = x.mean(0, keepdim=True), len(x)
        given[key] = x
        args = tuple(given.pop(i) for i in range(len(args)))
        total, positions = _seen(layer, args, given)
        before = sums.get(layer, (torch.zeros_like(total), 0))
        sums[layer] = (
            before[0] + count * total,
            before[1] + count * positions,
        )

    hooks = [
        layer.register_forward_pre_hook(add, with_kwargs=True)
        for layer in layers
    ]
    try:
        for index in parts:
            args, kwargs = data.inputs.take(index)
            unit.module(*args, **kwargs)
    finally:
        for hook in hooks:
            hook.remove()
    return sums


def _seen(
    layer: QuantLayer, args: tuple, kwargs: dict[Any, Any]
) -> tuple[Tensor, int]:
    """Return the sum of inputs that each weight sees, and of how many.

    It is the gradient of the sum of the output, whatever the layer does to
    its input before it convolves.

    Args:
        layer (QuantLayer): The layer.
        args (tuple): Its arguments, with a quantized input.
        kwargs (dict): Its keyword arguments, likewise.
    """
    weight = layer.stored_weight
    with _in_float(layer), torch.enable_grad():
        weight.requires_grad_()
        try:
            output = layer.forward(*args, **kwargs)
            (total,) = torch.autograd.grad(output.sum(), weight)
        finally:
            weight.requires_grad_(False)
    return total, output.numel() // len(weight)


@contextmanager
def _in_float(layer: QuantLayer) -> Iterator[None]:
    """Return a context in which a layer quantizes nothing."""
    quantizers = layer.weight_quantizer, layer.input_quantizer
    identity: Any = nn.Identity()
    layer.weight_quantizer = layer.input_quantizer = identity
    try:
        yield
    finally:
        layer.weight_quantizer, layer.input_quantizer = quantizers
