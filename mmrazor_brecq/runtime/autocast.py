"""Low precision during learning, where it is faster on the device."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Sequence
from typing import Callable, Literal, Optional

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from ..validation import validated
from .distributed import sum_over_processes

#: What a type may be called, and the type.
TYPES = dict(bfloat16=torch.bfloat16, float16=torch.float16)
FASTEST = 'fastest'
AutocastName = Optional[Literal['fastest', 'bfloat16', 'float16']]
#: A forward pass, from inputs to outputs.
Run = Callable[[Tensor], Sequence[Tensor]]


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

    def resume(self, types: Iterable[Optional[str]]) -> None:
        """Choose what an earlier run chose, to go on with it.

        Args:
            types (iterable): In which the units learned that it finished.
        """
        begun = list(types)
        if begun and self.open:
            self.chosen = next(filter(None, begun), None)

    def measure(
        self,
        run: Run,
        parameters: Iterable[nn.Parameter],
        inputs: Tensor,
    ) -> None:
        """Choose by a measurement, if the name asks for one.

        All processes choose the same.

        Args:
            run (callable): A forward pass, from inputs to outputs.
            parameters (iterable): Parameters that the way back reaches.
                None of them requires a gradient afterwards.
            inputs (Tensor): N x ... preprocessed inputs, 2 or more.
        """
        if not self.open:
            return
        parameters = [p for p in parameters if p.is_floating_point()]
        # A CPU that has no instructions for the type takes eight times as
        # long, which two images tell.
        least = _least(run, parameters, inputs[:2], turns=2)
        if least[1] < 2 * least[0]:
            least = _least(run, parameters, inputs, turns=3)
        usual, short = sum_over_processes(torch.tensor(least))
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
            enabled=self.low_precision,
        )

    @property
    def low_precision(self) -> bool:
        """Whether numbers take half of the memory."""
        return self.chosen in TYPES


def _least(
    run: Run, parameters: list[nn.Parameter], inputs: Tensor, turns: int
) -> list[float]:
    """Return the least seconds in the usual type, and in bfloat16."""
    least = [math.inf, math.inf]
    # In turns, so that whatever else runs slows both; the first loads code.
    for _ in range(turns):
        for i, dtype in enumerate((None, torch.bfloat16)):
            seconds = _seconds(run, parameters, inputs, dtype)
            least[i] = min(least[i], seconds)
    return least


def _seconds(
    run: Run,
    parameters: list[nn.Parameter],
    inputs: Tensor,
    dtype: Optional[torch.dtype],
) -> float:
    """Time a forward and backward pass.

    It takes forever in a type that the device or an operator lacks. On a
    CPU the time of this process counts, since other processes come and go.
    """
    on_cpu = inputs.device.type == 'cpu'
    clock = time.process_time if on_cpu else time.perf_counter
    try:
        for parameter in parameters:
            parameter.requires_grad_()
        start = clock()
        _pass(run, parameters, inputs, dtype)
        return clock() - start
    except RuntimeError:
        if dtype is None:
            raise
        return math.inf
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)


@torch.enable_grad()
def _pass(
    run: Run,
    parameters: list[nn.Parameter],
    inputs: Tensor,
    dtype: Optional[torch.dtype],
) -> None:
    """Run forward and backward, and wait for the end of it."""
    with torch.autocast(inputs.device.type, dtype, enabled=dtype is not None):
        outputs = run(inputs)
    losses = [x.float().square().mean() for x in outputs if x.requires_grad]
    if losses:
        grads = torch.autograd.grad(losses, parameters, allow_unused=True)
        float(sum(g.sum() for g in grads if g is not None))
