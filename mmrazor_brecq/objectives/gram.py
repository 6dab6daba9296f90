"""Eigenvectors of a Gram matrix, the inner products of all gradients."""

from __future__ import annotations

import torch
from torch import Tensor


def largest_eigenvectors(gram: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return the largest eigenvalues and eigenvectors of a Gram matrix.

    Args:
        gram (Tensor): N x N.
        rank (int): Maximum number R of them. Those below 1e-6 of the largest
            are left out, because they are rounding errors.

    Returns:
        tuple[Tensor, Tensor]: R eigenvalues in ascending order, and N x R.
    """
    values, vectors = torch.linalg.eigh(gram)
    largest = (values > values[-1] * 1e-6).nonzero()[:, 0][-rank:]
    return values[largest], vectors[:, largest]


def explained_fraction(gram: Tensor, rank: int, folds: int = 4) -> float:
    """Return the fraction of gradients that other images explain.

    The images are cut into folds. The gradients of each fold are projected
    on the leading eigenvectors of all other images.

    Args:
        gram (Tensor): Inner products of the images' gradients, N x N.
        rank (int): Maximum number of eigenvectors.
        folds (int): Number of folds.

    Returns:
        float: Squared length of the projections over that of the gradients,
        0 to 1, and 0 for a single image.
    """
    if len(gram) == 1:
        return 0.0
    projected, fold = 0.0, torch.arange(len(gram)) % folds
    for part in fold.unique():
        others = fold != part
        values, vectors = largest_eigenvectors(gram[others][:, others], rank)
        # The unit directions are G^T u / sqrt(v) with the others' gradients G,
        # so products with them are sums of products in the Gram matrix.
        along = gram[~others][:, others] @ (vectors / values.sqrt())
        projected += float(along.square().sum())
    return projected / float(gram.trace())
