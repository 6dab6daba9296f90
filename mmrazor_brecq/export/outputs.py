"""Compare the outputs of a whole file with those of the network in torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

import numpy as np


@dataclass
class OutputMatch:
    """Difference of the outputs between a file and its network in torch.

    Attributes:
        runtime (str): Runtime that ran the file.
        images (int): Number of images.
        agreement (float, optional): Fraction of images with the same best
            class, 0 to 1; None where the last output is not one of
            classes.
        largest (float): Largest difference, relative to the largest output.
        mean (float): Mean difference, relative to the mean magnitude.
        accuracy (float, optional): Top-1 accuracy of the file, in per cent.
        accuracy_torch (float, optional): That of the network in torch.
        tied (float): Fraction of images with another best class that the
            network's own noise does not tell from the first one.
        near (float): Fraction of elements that differ by less than the
            network's own noise, of the output where it is smallest.
    """

    runtime: str
    images: int
    agreement: Optional[float]
    largest: float
    mean: float
    accuracy: Optional[float] = None
    accuracy_torch: Optional[float] = None
    tied: float = 0.0
    near: float = 1.0

    def problem(self, least: float) -> Optional[str]:
        """Return what falls short of a fraction, None if nothing does.

        Args:
            least (float): Smallest fraction that is accepted, 0 to 1, of
                images with the same class and of elements that are near.
        """
        shortfall = None
        # Written so that NaN falls short.
        if not self.near >= least:
            shortfall = (
                f'are equal but for noise in {self.near:.2%} of the outputs'
            )
        if self.agreement is not None:
            if not self.agreement + self.tied >= least:
                shortfall = (
                    f'agree on {self.agreement:.2%} of {self.images} images '
                    f'({self.tied:.2%} more are ties)'
                )
        if shortfall is None:
            return None
        return f'{self.runtime} and torch {shortfall}, expected {least:.2%}'


def compare_outputs(
    runtime: str,
    expected: Sequence[np.ndarray],
    found: Sequence[np.ndarray],
    labels: Optional[np.ndarray] = None,
    noise: Optional[Sequence[float]] = None,
) -> OutputMatch:
    """Compare outputs for the same images.

    Args:
        runtime (str): Runtime that ran the file.
        expected (list[numpy.ndarray]): Outputs of the network in torch,
            N x ... each.
        found (list[numpy.ndarray]): Outputs of the file.
        labels (numpy.ndarray, optional): N true classes.
        noise (list[float], optional): How far each output may differ; by
            default not at all.

    Returns:
        OutputMatch: Of all outputs; classes are those of the last one.
    """
    pairs = [
        (x.astype('f8'), y.astype('f8').reshape(x.shape))
        for x, y in zip(expected, found)
    ]
    noise = noise or [0.0] * len(pairs)
    # Infinities are equal, though their difference is not zero.
    distances = [np.where(x == y, 0, np.abs(x - y)) for x, y in pairs]
    match = OutputMatch(
        runtime,
        images=len(expected[-1]) if expected[-1].ndim else 1,
        agreement=None,
        largest=max(
            float(d.max(initial=0) / max(np.abs(x).max(initial=0), 1e-30))
            for d, (x, _) in zip(distances, pairs)
        ),
        mean=max(
            float(d.mean() / max(np.abs(x).mean(), 1e-30))
            for d, (x, _) in zip(distances, pairs)
        ),
        near=min(float((d <= n).mean()) for d, n in zip(distances, noise)),
    )
    if has_classes(expected[-1]):
        _compare_classes(match, *pairs[-1], labels, noise[-1])
    return match


def _compare_classes(
    match: OutputMatch,
    expected: np.ndarray,
    found: np.ndarray,
    labels: Optional[np.ndarray],
    noise: float,
) -> None:
    """Add to a match how far the best classes agree.

    Args:
        match (OutputMatch): Changed in place.
        expected (numpy.ndarray): N x K scores of the network.
        found (numpy.ndarray): Those of the file.
        labels (numpy.ndarray, optional): N true classes.
        noise (float): How far scores may differ.
    """
    best, best_found = expected.argmax(1), found.argmax(1)
    second = np.take_along_axis(expected, best_found[:, None], 1)[:, 0]
    ties = expected.max(1) - second <= noise
    match.agreement = float((best == best_found).mean())
    match.tied = float((ties & (best != best_found)).mean())
    if labels is not None and best.shape == labels.shape:
        match.accuracy = 100 * float((best_found == labels).mean())
        match.accuracy_torch = 100 * float((best == labels).mean())


def has_classes(output: np.ndarray) -> bool:
    """Return whether an output is N x K scores of K > 1 classes.

    Maps are none: where most of an image is background, or a detector's
    head sees no object, the best of their channels says nothing.
    """
    floating = np.issubdtype(output.dtype, np.floating)
    return floating and output.ndim == 2 and output.shape[1] > 1
