"""Measure how far a network's outputs move where nothing is wrong.

A runtime sums in another order, or has biases in integers: a value next to
the edge between two integers falls to the other side, and later layers
amplify that, or do not. How much depends on the network alone: little in a
trained one of 8 bits, and up to the whole output with random weights. So it
is measured, and is the bound for differences between runtime and torch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ..functional import tensors
from ..graph import run_float
from ..quantizers import ActivationQuantizer
from .session import open_session, run

#: How far values are moved, as a fraction of the scale: one in forty
#: integers changes.
NOISE = 0.05
#: Passes with noise, and the number of images of each.
PASSES, IMAGES = 3, 64
#: How many standard deviations an output may differ by.
DEVIATIONS = 4
#: Noise of float arithmetic, relative to the spread of an output.
FLOAT_NOISE = 1e-3


def torch_outputs(
    network: nn.Module, batches: Sequence[Tensor]
) -> list[np.ndarray]:
    """Return every output tensor of a network, for all batches together.

    Args:
        network (nn.Module): Any.
        batches (list[Tensor]): N x ... preprocessed images each.
    """
    found = []
    with torch.no_grad():
        for images in batches:
            outputs = tensors(run_float(network, images))
            found.append([x.numpy() for x in outputs])
    return joined(found)


def joined(parts: Sequence[Sequence[np.ndarray]]) -> list[np.ndarray]:
    """Join the outputs of several batches.

    Args:
        parts (list[list[numpy.ndarray]]): For each batch, its outputs.

    Returns:
        list[numpy.ndarray]: Each output, for all batches.
    """
    return [
        np.concatenate(x) if x[0].ndim else np.stack(x) for x in zip(*parts)
    ]


def output_noise(
    network: nn.Module,
    content: bytes,
    batches: Sequence[tuple[Tensor, Tensor]],
    expected: Sequence[np.ndarray],
) -> list[float]:
    """Return how far each output may differ.

    Args:
        network (nn.Module): Quantized, in torch.
        content (bytes): The file. Run as the standard says, it differs from
            the network only by what its target has in integers, and the
            comparison of layers checks that.
        batches (list[tuple]): Images as the network takes them, and as the
            file does; the first :data:`IMAGES` are used.
        expected (list[numpy.ndarray]): Outputs for all of them.

    Returns:
        list[float]: One bound for each output, in its own unit.
    """
    count = max(1, IMAGES // len(batches[0][0]))
    images = [x for x, _ in batches[:count]]
    exact = torch_outputs(network, images)
    session = open_session(content, fused=False)
    moved = [joined([run(session, x) for _, x in batches[:count]])]
    moved += _noisy_outputs(network, images)
    return [
        max(
            [FLOAT_NOISE * _spread(output)]
            + [DEVIATIONS * _distance(exact[i], other[i]) for other in moved]
        )
        for i, output in enumerate(expected)
    ]


def _noisy_outputs(
    network: nn.Module, images: Sequence[Tensor]
) -> list[list[np.ndarray]]:
    """Return the outputs of several passes with noise at all quantizers."""
    generator = torch.Generator().manual_seed(0)

    def add_noise(
        quantizer: ActivationQuantizer, args: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        noise = torch.rand(args[0].shape, generator=generator) * 2 - 1
        return (args[0] + NOISE * quantizer.scale * noise, *args[1:])

    handles = [
        module.register_forward_pre_hook(add_noise)
        for module in network.modules()
        if isinstance(module, ActivationQuantizer) and module.active
    ]
    try:
        passes = PASSES if handles else 0
        return [torch_outputs(network, images) for _ in range(passes)]
    finally:
        for handle in handles:
            handle.remove()


def _spread(x: np.ndarray) -> float:
    """Return the standard deviation, or for a constant its magnitude."""
    x = x.astype('f8')
    return max(float(x.std()), 1e-3 * float(np.abs(x).max(initial=0)), 1e-30)


def _distance(x: np.ndarray, y: np.ndarray) -> float:
    """Return the root mean squared difference of all finite elements."""
    x, y = x.astype('f8'), y.astype('f8').reshape(x.shape)
    squares = np.square(x - y)[np.isfinite(x) & np.isfinite(y)]
    return float(squares.mean() ** 0.5) if squares.size else 0.0
