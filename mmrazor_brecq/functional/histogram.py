"""Histograms of tensors, in plain Python."""

from __future__ import annotations

from typing import TypedDict

import torch
from torch import Tensor

#: Number of bins.
BINS = 64


class Histogram(TypedDict):
    """How the elements of a tensor are distributed.

    Attributes:
        low (float): The smallest element.
        high (float): The largest element.
        counts (list[int]): Elements in bins of equal size from ``low`` to
            ``high``.
    """

    low: float
    high: float
    counts: list[int]


def histogram(values: Tensor, bins: int = BINS) -> Histogram:
    """Return how the elements of a tensor are distributed.

    Args:
        values (Tensor): Finite, of any shape, one element or more.
        bins (int): Number of bins, 1 or more.

    Example:
        >>> histogram(torch.tensor([0.0, 1.0, 1.0]), bins=2)
        {'low': 0.0, 'high': 1.0, 'counts': [1, 2]}
    """
    # On the CPU, because the counts have to be the same in every run.
    values = values.detach().flatten().float().cpu()
    low, high = map(float, values.aminmax())
    counts = torch.histc(values, bins, low, high)
    return dict(low=low, high=high, counts=counts.long().tolist())
