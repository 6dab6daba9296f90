"""What single layers cost: quantized alone, and left out alone."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Optional

import torch
from torch import Tensor, nn

from ..activations import CachedBatches
from ..algorithms import BRECQ
from ..graph import Door, run_float
from .costs import validator
from .layers import decibels
from .swap import swapped

#: Images on which the outputs of a layer are compared.
SIGNAL_IMAGES = 8


class SingleLayers:
    """The layers of a quantized network, each by itself.

    A layer is its weight and what quantizes its input, or both operands of
    a product. Where the door of a unit quantizes the input, it belongs to
    each of the layers that read it, and so does the shortcut behind it: so
    it is with the bits that ``bit_overrides`` gives a layer.

    Args:
        model (BRECQ): A quantized model.
        teacher (nn.Module): Its float network. Both are as they are before
            and after each measurement.
        images (CachedBatches): Calibration images.
        count (int): Number of held-out images to measure on, at most.

    Attributes:
        names (list[str]): The layers and products, in the order of
            execution.
        images (int): Number of images that are measured on.
        whole (float): Divergence of the quantized network's output from
            that of the float one, in nats an image.
        seconds (float): About how long a layer takes to be measured.
    """

    def __init__(
        self,
        model: BRECQ,
        teacher: nn.Module,
        images: CachedBatches,
        count: int,
    ) -> None:
        self.model, self.teacher = model, teacher
        held_out = model.held_out_of(len(images))
        first = len(images) - held_out
        self.images = min(count, held_out)
        span = range(first, first + self.images)
        self._diverges = validator().divergence_from(teacher, images, span)
        self._some = images.take(torch.tensor(span[:SIGNAL_IMAGES]))
        self.units = {
            n: unit.name for unit in model.units for n in unit.layers
        }
        self.names = list(self.units)
        self.whole = self._diverges(model.architecture)
        start = time.perf_counter()  # The first pass is the slowest.
        self._diverges(model.architecture)
        passes = 2 + 2 * len(self._some) / self.images
        self.seconds = passes * (time.perf_counter() - start)

    def __call__(self, name: str) -> dict[str, Any]:
        """Measure a layer.

        Args:
            name (str): The layer.

        Returns:
            dict: Its ``name``, ``unit``, ``bits`` of weight and input, the
            divergences ``alone`` (it alone is quantized) and ``left_out``
            (it alone is float), in nats an image, and ``signal_db``, the
            ratio of signal to noise of its output when it alone is
            quantized, None if there is no noise or no signal.
        """
        with self.alone(name) as network:
            alone = self._diverges(network)
        with self.left_out(name) as network:
            left_out = self._diverges(network)
        return dict(
            name=name,
            unit=self.units[name],
            bits=list(self.model.bits[name]),
            alone=alone,
            left_out=left_out,
            signal_db=self._signal_db(name),
        )

    @contextmanager
    def alone(self, name: str) -> Iterator[nn.Module]:
        """Return a context with the float network, one layer quantized.

        Args:
            name (str): The layer.
        """
        layer = self.model.architecture.get_submodule(name)
        if not name:  # The network is this layer.
            yield layer
            return
        with swapped(self.teacher, {name: layer}), ExitStack() as stack:
            for owner, door in self._doors(name).items():
                hook = door.attach(self.teacher.get_submodule(owner))
                stack.callback(hook.remove)
            yield self.teacher

    @contextmanager
    def left_out(self, name: str) -> Iterator[nn.Module]:
        """Return a context with the quantized network, one layer in float.

        Args:
            name (str): The layer.
        """
        if not name:
            yield self.teacher
            return
        others = {name: self.teacher.get_submodule(name)}
        for owner, door in self._doors(name).items():
            dot = f'{owner}.' if owner else ''
            for index in door.inputs:
                others[f'{dot}door.inputs.{index}'] = nn.Identity()
        with swapped(self.model.architecture, others):
            yield self.model.architecture

    def _doors(self, name: str) -> dict[str, Door]:
        """Return, by unit, a door with what quantizes a layer's input."""
        found = {}
        for owner, module in self.model.architecture.named_modules():
            door = getattr(module, 'door', None)
            if isinstance(door, Door):
                read = {i: n for i, n in door.readers.items() if name in n}
                inputs = {i: door.inputs[str(i)] for i in read}
                if read:
                    found[owner] = Door(inputs, read)
        return found

    def _signal_db(self, name: str) -> Optional[float]:
        """Return the ratio of signal to noise of a layer's output."""
        expected = _outputs(self.teacher, name, self._some)
        with self.alone(name) as network:
            found = _outputs(network, name, self._some)
        signal = sum(float(x.double().square().sum()) for x in expected)
        noise = sum(
            float((y - x).double().square().sum())
            for x, y in zip(expected, found)
        )
        if not (math.isfinite(signal) and math.isfinite(noise)):
            return None
        return decibels(signal, noise)


@torch.no_grad()
def _outputs(network: nn.Module, name: str, images: Any) -> list[Tensor]:
    """Return what a layer puts out, call by call."""
    found: list[Tensor] = []
    hook = network.get_submodule(name).register_forward_hook(
        lambda module, args, output: found.append(output.float())
    )
    try:
        run_float(network, images)
    finally:
        hook.remove()
    return found
