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

#: Low-precision dtypes by their names in a config.
DTYPES = dict(bfloat16=torch.bfloat16, float16=torch.float16)
FASTEST = 'fastest'
AutocastName = Optional[Literal['fastest', 'bfloat16', 'float16']]
#: A forward pass, from inputs to outputs.
Run = Callable[[Tensor], Sequence[Tensor]]


@validated
class Autocast:
    """The dtype in which convolutions and matrix products compute.

    Example:
        >>> with Autocast('bfloat16')(torch.device('cpu')):
        ...     nn.Linear(2, 1)(torch.ones(1, 2)).dtype
        torch.bfloat16

    Args:
        name (str, optional): ``'bfloat16'``, ``'float16'``, None for the
            dtype of the weights, or ``'fastest'``: bfloat16 if a short
            measurement finds it clearly faster on this device, since a
            device may support it poorly, or for some layers only.

    Raises:
        ValueError: If it is none of them.
    """

    #: Largest ratio of its time to that of float32 at which bfloat16 is
    #: chosen. It is below 1, so that a second measurement chooses the same.
    max_time_ratio = 0.85

    def __init__(self, name: AutocastName = None) -> None:
        #: Name of the chosen dtype; None is that of the weights.
        self.chosen: Optional[str] = name

    @property
    def undecided(self) -> bool:
        """Whether the dtype is still to be measured."""
        return self.chosen == FASTEST

    @property
    def low_precision(self) -> bool:
        """Whether layers compute in low precision, in half of the memory."""
        return self.chosen in DTYPES

    def resume(self, names: Iterable[Optional[str]]) -> None:
        """Choose what an earlier run chose, if nothing else was asked for.

        Args:
            names (iterable): The dtypes in which the finished units of that
                run learned; None is that of the weights.
        """
        names = list(names)
        if names and self.undecided:
            self.chosen = next(filter(None, names), None)

    def measure(
        self,
        run: Run,
        parameters: Iterable[nn.Parameter],
        inputs: Tensor,
    ) -> None:
        """Choose the fastest dtype by a measurement, if it was asked for.

        All processes choose the same.

        Args:
            run (callable): A forward pass, from inputs to outputs.
            parameters (iterable): Parameters that the backward pass
                reaches. None of them requires a gradient afterwards.
            inputs (Tensor): N x ... preprocessed inputs, N at least 2.
        """
        if not self.undecided:
            return
        parameters = [p for p in parameters if p.is_floating_point()]
        # A CPU without instructions for bfloat16 takes eight times as long,
        # which two images show.
        seconds = _min_seconds(run, parameters, inputs[:2], repeats=2)
        if seconds[1] < 2 * seconds[0]:
            seconds = _min_seconds(run, parameters, inputs, repeats=3)
        exact, low_precision = sum_over_processes(torch.tensor(seconds))
        ratio = float(low_precision / exact)
        self.chosen = 'bfloat16' if ratio <= self.max_time_ratio else None
        print_log(
            f'bfloat16 takes {ratio:.0%} of the time of float32 on this '
            f'device: learns in {self.chosen or "float32"}',
            'current',
            logging.INFO,
        )

    def __call__(self, device: torch.device) -> torch.autocast:
        """Return a context in which layers compute in the chosen dtype.

        Args:
            device (torch.device): Device of the layers.
        """
        return torch.autocast(
            device.type,
            DTYPES.get(self.chosen or ''),
            enabled=self.low_precision,
        )


def _min_seconds(
    run: Run, parameters: list[nn.Parameter], inputs: Tensor, repeats: int
) -> list[float]:
    """Return the least seconds of a pass: in float32, and in bfloat16."""
    least = [math.inf, math.inf]
    # The dtypes alternate, so that other load on the machine slows both.
    for _ in range(repeats):
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
    """Return the seconds of a forward and backward pass.

    They are infinite if the device or an operator lacks the dtype. On a CPU
    only the time of this process counts, since other processes come and go.
    """
    on_cpu = inputs.device.type == 'cpu'
    clock = time.process_time if on_cpu else time.perf_counter
    try:
        for parameter in parameters:
            parameter.requires_grad_()
        start = clock()
        _forward_backward(run, parameters, inputs, dtype)
        return clock() - start
    except RuntimeError:
        if dtype is None:
            raise
        return math.inf
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)


@torch.enable_grad()
def _forward_backward(
    run: Run,
    parameters: list[nn.Parameter],
    inputs: Tensor,
    dtype: Optional[torch.dtype],
) -> None:
    """Run forward and backward, and wait until the device has finished."""
    with torch.autocast(inputs.device.type, dtype, enabled=dtype is not None):
        outputs = run(inputs)
    losses = [x.float().square().mean() for x in outputs if x.requires_grad]
    if losses:
        grads = torch.autograd.grad(losses, parameters, allow_unused=True)
        # Reading a value waits for all that it depends on.
        float(sum(g.sum() for g in grads if g is not None))
