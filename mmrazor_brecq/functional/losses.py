"""Losses between what a quantized part gives and what it should give."""

from __future__ import annotations

from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor


def lp_error(x: Tensor, y: Tensor, p: float, dim: int = -1) -> Tensor:
    """Mean of ``|x - y|^p`` along ``dim``."""
    return (x - y).abs().pow(p).mean(dim)


def weighted_squared_error(
    output: Tensor, target: Tensor, weight: Optional[Tensor] = None
) -> Tensor:
    """Mean squared error, weighted element by element.

    With the squared gradient of the task's loss as the weight this is the
    diagonal Fisher approximation (BRECQ, eq. 10).

    Args:
        output (Tensor): N x ... outputs.
        target (Tensor): The same shape.
        weight (Tensor, optional): Broadcastable to ``output``, mean 1.

    Returns:
        Tensor: A scalar.
    """
    error = (output - target).square()
    return (error if weight is None else error * weight).mean()


def kl_to_teacher(logits: Tensor, teacher: Tensor) -> Tensor:
    """Kullback-Leibler divergence from the teacher, averaged over images.

    Args:
        logits (Tensor): N x C.
        teacher (Tensor): N x C logits of the float model.
    """
    return F.kl_div(
        torch.log_softmax(logits, -1),
        torch.log_softmax(teacher, -1),
        reduction='batchmean',
        log_target=True,
    )
