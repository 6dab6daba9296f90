"""Logarithmic quantization: points whose ratio is the same everywhere."""

from __future__ import annotations

import torch
from torch import Tensor


def quantize_to_powers(
    x: Tensor, largest: Tensor, per_octave: Tensor, levels: int
) -> Tensor:
    """Quantize and dequantize to ``largest * 2^(-q / per_octave)``, and 0.

    The integer ``q`` is 0 to ``levels - 2``; what lies half a point below
    the smallest of these powers becomes 0 (Miyashita et al.,
    "Convolutional Neural Networks using Logarithmic Data Representation",
    2016). Rounding passes gradients straight through.

    Example:
        >>> x = torch.tensor([1.0, 0.6, 0.2, 0.01])
        >>> quantize_to_powers(x, torch.tensor(1.0), torch.tensor(1), 4)
        tensor([1.0000, 0.5000, 0.2500, 0.0000])

    Args:
        x (Tensor): Real values; none is taken for negative.
        largest (Tensor): The largest point, above 0, broadcastable to ``x``.
        per_octave (Tensor): Scalar, number of points by which values halve.
        levels (int): Number of points, 0 included, at least 2.

    Returns:
        Tensor: In the shape of ``x``, in float32.
    """
    # What is smaller becomes 0, and has no logarithm.
    smallest = torch.finfo(torch.float32).tiny
    ratio = (x.float() / largest).clamp(min=smallest)
    exact = (-ratio.log2() * per_octave).clamp(min=0)
    q = exact + (exact.round() - exact).detach()
    powers = torch.exp2(-q / per_octave) * largest
    return torch.where(q < levels - 1, powers, 0.0)
