"""Find the few activations that 8 bits do not resolve.

Where images are not normalized, the output of a first layer may reach a
hundred times as far as most of it lies, and what rounding does to it alone
spoils the network's output. No learning behind it makes up for that, and 16
bits do.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from ..activations import CachedBatches
from ..functional import tensors
from ..graph import run_float
from ..quantizers import ActivationQuantizer
from ..runtime.distributed import sum_over_processes

#: Bits of activations that are examined, and those of the few.
EXAMINED, WIDE = 8, 16
#: Squared error of an output, as a fraction of its variance, from which on
#: an activation spoils it, and how many times the median of all it has to be:
#: in a network that amplifies any error no activation is to blame.
LIMIT, TIMES_MEDIAN = 0.01, 10
#: Names of quantizers of inputs of layers and units. Operands of products of
#: activations stay as they are.
INPUT = re.compile(r'(input_quantizer|\bdoor\.inputs\.\d+)$')
#: Images that are looked at.
IMAGES = 8


@torch.no_grad()
def widen(
    network: nn.Module, images: CachedBatches, kept: Collection[str] = ()
) -> dict[str, float]:
    """Give 16 bits to the activations that spoil the output with 8.

    Each is rounded alone, on a few images, all else being float. Symmetric
    ones, such as TensorRT takes, keep 8 bits, and nothing is changed if
    rounding all of them together costs little.

    Args:
        network (nn.Module): With quantizers that have no scales yet, in
            evaluation mode. The bits of the few are changed in place.
        images (CachedBatches): Calibration images.
        kept (list[str]): Names of quantizers that keep their bits, since
            the device knows no 16.

    Returns:
        dict[str, float]: For each quantizer with 16 bits now, the squared
        error of the output with 8, as a fraction of its variance.
    """
    examined = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, ActivationQuantizer)
        and module.grid.bits == EXAMINED
        # Who asks for symmetric ones has a device that knows 8 bits only.
        and not module.grid.symmetric
        and module.uniform
        and INPUT.search(name)
        and name not in kept
        and not module.active
    }
    some = images.take(torch.arange(min(len(images), IMAGES)))
    fitted, output = _fitted(network, examined, some)

    def error(names: Sequence[str]) -> float:
        with ExitStack() as stack:
            for name in names:
                stack.enter_context(_rounded(examined[name], fitted[name]))
            return _error(output, tensors(run_float(network, some)))

    if not error(list(fitted)) > LIMIT:
        return {}
    errors = {name: error([name]) for name in fitted}
    middle = float(torch.tensor(list(errors.values())).median())
    found = {
        name: value
        for name, value in errors.items()
        if value > max(LIMIT, TIMES_MEDIAN * middle)
    }
    for name in found:
        examined[name].set_bits(WIDE)
    return found


def _fitted(
    network: nn.Module, quantizers: Mapping[str, ActivationQuantizer], x: Any
) -> tuple[dict[str, ActivationQuantizer], list[Tensor]]:
    """Return fitted copies of the quantizers that are called, and the output.

    Args:
        network (nn.Module): The network, whose quantizers do nothing yet.
        quantizers (dict): By name.
        x (Any): A batch of images.
    """
    samples: dict[str, list[Tensor]] = {}

    def hook(name: str) -> Any:
        def keep(module: ActivationQuantizer, args: tuple) -> None:
            sample = module.sample(args[0])
            samples.setdefault(name, []).append(sample[sample.isfinite()])

        return keep

    handles = [
        quantizer.register_forward_pre_hook(hook(name))
        for name, quantizer in quantizers.items()
    ]
    try:
        output = tensors(run_float(network, x))
    finally:
        for handle in handles:
            handle.remove()
    fitted = {}
    for name, values in samples.items():
        fitted[name] = copy.deepcopy(quantizers[name])
        fitted[name].fit(torch.cat(values))
    return fitted, output


def _rounded(
    quantizer: ActivationQuantizer, fitted: ActivationQuantizer
) -> AbstractContextManager:
    """Return a context in which a quantizer does as its fitted copy."""
    return quantizer.register_forward_hook(
        lambda module, args, output: fitted(args[0])
    )


def _error(expected: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """Return the largest error of an output, as a fraction of its variance.

    What a class or a channel has in all images is no part of the variance.
    """
    parts = [
        torch.stack([(y - x).square().sum(), _spread(x)]).double()
        for x, y in zip(expected, found)
        if x.is_floating_point()
    ]
    if not parts:
        return 0.0
    error, variance = sum_over_processes(torch.stack(parts)).unbind(1)
    return float((error / variance.clamp(min=1e-30)).max())


def _spread(x: Tensor) -> Tensor:
    """Return the sum of squared distances from the mean of each channel."""
    others = [i for i in range(x.dim()) if i != 1]
    return (x - x.mean(others, keepdim=True)).square().sum()
