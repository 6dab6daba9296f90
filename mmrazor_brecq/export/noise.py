"""How much a network's outputs move where nothing is wrong.

A runtime sums in another order, or has biases in integers: a value next to
the edge between two integers falls to the other side, and what comes after
makes more of it, or less. How much depends on the network alone: little in
a trained one of 8 bits, and all of it in one with random weights. It is
therefore measured, and differences are held against it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..functional import tensors
from ..graph import run_float
from ..quantizers import ActivationQuantizer
from .session import open_session, run

#: By what share of a step values are moved: so one in forty integers flips.
MOVED = 0.05
#: Passes that are drawn, and the images of each.
DRAWS, IMAGES = 3, 64
#: How many standard deviations an output may be away.
DEVIATIONS = 4
#: What is noise in float, relative to an output's spread.
FLOOR = 1e-3


def torch_outputs(
    network: nn.Module, batches: Sequence[Tensor]
) -> list[np.ndarray]:
    """All tensors that a network puts out, for all batches together."""
    found = []
    with torch.no_grad():
        for images in batches:
            outputs = tensors(run_float(network, images))
            found.append([x.numpy() for x in outputs])
    return joined(found)


def joined(parts: Sequence[Sequence[np.ndarray]]) -> list[np.ndarray]:
    """The outputs of batches, each in one array."""
    return [
        np.concatenate(x) if x[0].ndim else np.stack(x) for x in zip(*parts)
    ]


def output_noise(
    network: nn.Module,
    content: bytes,
    batches: Sequence[tuple[Tensor, Tensor]],
    expected: Sequence[np.ndarray],
) -> list[float]:
    """What each output may differ by.

    Args:
        network (nn.Module): Quantized, in torch.
        content (bytes): The file. As the standard has it, it differs from
            the network by what its target has in integers, which the
            comparison of layers judges.
        batches (list[tuple]): Images as the network takes them, and as the
            file does; the first few are enough.
        expected (list[numpy.ndarray]): Outputs for all of them.
    """
    count = max(1, IMAGES // len(batches[0][0]))
    some = batches[:count]
    exact = torch_outputs(network, [x for x, _ in some])
    session = open_session(content, fused=False)
    moved = [joined([run(session, x) for _, x in some])]
    generator = torch.Generator().manual_seed(0)

    def move(module: Any, args: Any) -> Any:
        x = args[0]
        noise = torch.rand(x.shape, generator=generator) * 2 - 1
        return (x + MOVED * module.scale * noise, *args[1:])

    handles = [
        module.register_forward_pre_hook(move)
        for module in network.modules()
        if isinstance(module, ActivationQuantizer) and module.active
    ]
    try:
        for _ in range(DRAWS if handles else 0):
            moved.append(torch_outputs(network, [x for x, _ in some]))
    finally:
        for handle in handles:
            handle.remove()
    return [
        max(
            [FLOOR * _spread(own)]
            + [DEVIATIONS * _apart(exact[i], other[i]) for other in moved]
        )
        for i, own in enumerate(expected)
    ]


def _spread(x: np.ndarray) -> float:
    """Standard deviation, or where all are the same their magnitude."""
    x = x.astype('f8')
    return max(float(x.std()), 1e-3 * float(np.abs(x).max(initial=0)), 1e-30)


def _apart(x: np.ndarray, y: np.ndarray) -> float:
    """Root of the mean squared difference, of what is finite in both."""
    x, y = x.astype('f8'), y.astype('f8').reshape(x.shape)
    apart = np.square(x - y)[np.isfinite(x) & np.isfinite(y)]
    return float(apart.mean() ** 0.5) if apart.size else 0.0
