"""How often one image uses the weights of a unit."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor

from ..graph import Unit
from ..layers import QuantLayer
from .open_parts import open_layers
from .unit import UnitData


@torch.no_grad()
def positions(unit: Unit, data: UnitData) -> int:
    """Return the positions at which every open layer of a unit computes.

    A convolution uses its weight at each pixel of its output, a linear layer
    at each token. So an image with many of them tells as much about the
    weights as many images with few.

    Args:
        unit (Unit): The unit.
        data (UnitData): Its activations.

    Returns:
        int: The number for one image, that of the layer with the fewest, and
        1 at the least.

    Example:
        >>> positions(unit, data)  # a 3 x 3 convolution from 56 x 56 pixels
        3136
    """
    found: Counter[QuantLayer] = Counter()

    def count(layer: QuantLayer, _: object, output: Tensor) -> None:
        found[layer] += output.numel() // len(layer.stored_weight)

    hooks = [m.register_forward_hook(count) for m in open_layers(unit.module)]
    try:
        args, kwargs = data.inputs.take(torch.tensor([0]))
        unit.module(*args, **kwargs)
    finally:
        for hook in hooks:
            hook.remove()
    return max(1, min(found.values(), default=1))
