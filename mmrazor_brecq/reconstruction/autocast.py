"""Shorter numbers while something learns, where they are quicker."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable
from typing import Any, Literal, Optional

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from ..functional import map_tensors, tensors
from ..graph import run_float
from ..validation import validated
from .processes import total
from .rows import AND_BACK, Rows, at_once

#: What a type may be called, and the type.
TYPES = dict(bfloat16=torch.bfloat16, float16=torch.float16)
FASTEST = 'fastest'
AutocastName = Optional[Literal['fastest', 'bfloat16', 'float16']]


@validated
class Autocast:
    """The type of the numbers that convolutions and matrix products take.

    Args:
        name (str, optional): ``'bfloat16'``, ``'float16'``, None for the
            type of the weights, or ``'fastest'`` for bfloat16 if a short
            measurement finds it much quicker on the device at hand: a
            device may lack it, or have it for some layers only.

    Raises:
        ValueError: If it is none of them.
    """

    #: Share of the usual time that is much quicker: the measurement shall
    #: come to the same end when it is repeated.
    quicker = 0.85

    def __init__(self, name: AutocastName = None) -> None:
        self.chosen: Optional[str] = name

    @property
    def open(self) -> bool:
        """Whether it is still to be measured."""
        return self.chosen == FASTEST

    def follow(self, types: Iterable[Optional[str]]) -> None:
        """Choose what an earlier run chose, to go on with it.

        Args:
            types (iterable): In which the units learned that it finished.
        """
        begun = list(types)
        if begun and self.open:
            self.chosen = next(filter(None, begun), None)

    def measure(self, network: nn.Module, images: Rows) -> None:
        """Choose, if that is wanted; all processes choose the same.

        Args:
            network (nn.Module): The float network.
            images (Rows): Preprocessed inputs.
        """
        if not self.open:
            return
        size = at_once(images.elements, most=16, room=AND_BACK)
        inputs = images.take(torch.arange(min(size, len(images))))
        # A CPU that has no instructions for the type takes eight times as
        # long, which two images tell.
        least = _least(network, inputs[:2], turns=2)
        if least[1] < 2 * least[0]:
            least = _least(network, inputs, turns=3)
        usual, short = total(torch.tensor(least))
        share = float(short / usual)
        self.chosen = 'bfloat16' if share <= self.quicker else None
        print_log(
            f'bfloat16 takes {share:.0%} of the time of float32 on this '
            f'device: learns in {self.chosen or "float32"}',
            'current',
            logging.INFO,
        )

    def __call__(self, device: torch.device) -> torch.autocast:
        """A context in which layers compute in the type.

        Args:
            device (torch.device): Where they are.
        """
        return torch.autocast(
            device.type,
            TYPES.get(self.chosen or ''),
            enabled=self.short,
        )

    @property
    def short(self) -> bool:
        """Whether numbers take half of the memory."""
        return self.chosen in TYPES


def widened(nested: Any) -> Any:
    """The same structure, its real numbers of four bytes or more.

    What autocast leaves behind is short, and errors are computed without
    it: not every loss takes two types.

    Args:
        nested (Any): Tensors in any structure.
    """
    return map_tensors(_wide, nested)


def takes_short(method: Callable) -> Callable:
    """Marks a method of an objective that takes outputs as layers give them.

    Under autocast they are of shorter numbers than the target. To lengthen
    them costs a twentieth of an iteration of ResNet-18, and not every loss
    takes two types: :func:`as_taken` does it for whoever is not marked.
    """
    method.takes_short = True  # type: ignore[attr-defined]
    return method


def as_taken(method: Callable, output: Any) -> Any:
    """A unit's output in numbers that a method of an objective takes.

    Args:
        method (Callable): ``loss`` or ``error``, the objective's own.
        output (Any): Tensors in any structure.
    """
    return output if hasattr(method, 'takes_short') else widened(output)


def _wide(x: Tensor) -> Tensor:
    if not x.is_floating_point():
        return x
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _least(network: nn.Module, inputs: Tensor, turns: int) -> list[float]:
    """The least seconds in the usual type, and in the short one."""
    least = [math.inf, math.inf]
    # In turns, so that whatever else runs slows both; the first loads code.
    for _ in range(turns):
        for i, dtype in enumerate((None, torch.bfloat16)):
            least[i] = min(least[i], _seconds(network, inputs, dtype))
    return least


def _seconds(
    network: nn.Module, inputs: Tensor, dtype: Optional[torch.dtype]
) -> float:
    """How long a pass forward and back takes.

    It takes forever in a type that the device or an operator lacks. On a
    CPU it is the time of this process that counts, for others come and go.
    """
    on_cpu = inputs.device.type == 'cpu'
    clock = time.process_time if on_cpu else time.perf_counter
    parameters = [p for p in network.parameters() if p.is_floating_point()]
    try:
        for parameter in parameters:
            parameter.requires_grad_()
        start = clock()
        _pass(network, inputs, parameters, dtype)
        return clock() - start
    except RuntimeError:
        if dtype is None:
            raise
        return math.inf
    finally:
        network.requires_grad_(False)


@torch.enable_grad()
def _pass(
    network: nn.Module,
    inputs: Tensor,
    parameters: Any,
    dtype: Optional[torch.dtype],
) -> None:
    """Forward, back, and wait for the end of it."""
    with torch.autocast(inputs.device.type, dtype, enabled=dtype is not None):
        outputs = tensors(run_float(network, inputs))
    losses = [x.float().square().mean() for x in outputs if x.requires_grad]
    if losses:
        grads = torch.autograd.grad(losses, parameters, allow_unused=True)
        float(sum(g.sum() for g in grads if g is not None))
