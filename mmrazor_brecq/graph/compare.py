"""How far two networks are from each other."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from .record import run_float


def relative_difference(
    model: nn.Module, other: nn.Module, inputs: Tensor
) -> float:
    """Largest difference of two networks' outputs, relative to the largest
    output of the first.
    """
    with torch.no_grad():
        pairs = zip(
            tree_leaves(run_float(model, inputs)),
            tree_leaves(run_float(other, inputs)),
        )
    return max(
        float((x - y).abs().max() / x.abs().max().clamp(min=1e-30))
        for x, y in pairs
        if isinstance(x, Tensor)
    )
