"""When a unit has learned enough."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Callable

import torch
from torch import Tensor

from ..layers import QuantLayer
from ..registry import TASK_UTILS
from ..validation import Config, Count, Fraction


@TASK_UTILS.register_module()
class WhenSettled:
    """Ends the learning of a unit that has come to rest.

    That is when hardly a weight rounds to another integer than a while ago,
    and the held-out error is flat. The error takes a pass to find out, and
    is asked for only once the rounding has settled.

    Args:
        share (float): Of the weights that may still change their integer
            between two looks.
        gain (float): By which share the held-out error has to fall from
            one look to the next to go on.
        every (int): Iterations between two looks.

    Raises:
        ValueError: If ``every`` is below 1, or another number negative.
    """

    def __init__(
        self, share: Fraction = 0.01, gain: Fraction = 0.01, every: Count = 20
    ) -> None:
        self.share = share
        self.gain = gain
        self.every = every

    def watch(
        self, layers: Sequence[QuantLayer], judge: Callable[[], float]
    ) -> Callable[[int], bool]:
        """Begin with a unit.

        Args:
            layers (list[QuantLayer]): Those that learn how to round.
            judge (callable): Gives the held-out error.

        Returns:
            callable: Told the number of each iteration that is over,
            whether it is to be the last.
        """
        known = _integers(layers)
        error = math.inf

        def settled(i: int) -> bool:
            nonlocal known, error
            if (i + 1) % self.every:
                return False
            before, known = known, _integers(layers)
            if (known != before).sum() > self.share * len(known):
                return False
            last, error = error, judge()
            return error > (1 - self.gain) * last

        return settled


#: How a parameter says that it takes one.
StoppingConfig = Annotated[dict, Config(WhenSettled, TASK_UTILS)]


@torch.no_grad()
def _integers(layers: Sequence[QuantLayer]) -> Tensor:
    """What the weights round to now, one after the other."""
    found = [torch.empty(0, dtype=torch.int16)]
    for layer in layers:
        rounding = layer.weight_quantizer.rounding
        if rounding is not None:
            learning = rounding.training
            found.append(rounding.eval()().flatten().short().cpu())
            rounding.train(learning)
    return torch.cat(found)
