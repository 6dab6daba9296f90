"""Rules that end the learning of a unit early."""

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
    """Rule that ends learning when rounding and error no longer change.

    It looks at the unit every few iterations. Learning ends if hardly any
    weight rounds to another integer than at the last look, and the held-out
    error no longer falls. The error takes a forward pass, so it is only
    computed once the rounding has settled.

    Args:
        share (float): Fraction of the weights that may round to another
            integer between two looks, 0 to 1.
        gain (float): Fraction by which the held-out error has to fall
            between two looks to go on, 0 to 1.
        every (int): Number of iterations between two looks, 1 or more.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> reconstructor = dict(
        ...     type='BlockReconstructor',
        ...     stopping=dict(type='WhenSettled', share=0.01, every=20),
        ... )
    """

    def __init__(
        self, share: Fraction = 0.01, gain: Fraction = 0.01, every: Count = 20
    ) -> None:
        self.share = share
        self.gain = gain
        self.every = every

    def watch(
        self, layers: Sequence[QuantLayer], validate: Callable[[], float]
    ) -> Callable[[int], bool]:
        """Begin with a unit.

        Args:
            layers (list[QuantLayer]): The layers that learn how to round.
            validate (callable): Computes the held-out error.

        Returns:
            callable: Takes the index of an iteration that is finished, and
            returns whether learning ends.
        """
        integers = _integers(layers)
        error = math.inf

        def settled(i: int) -> bool:
            nonlocal integers, error
            if (i + 1) % self.every:
                return False
            before, integers = integers, _integers(layers)
            if (integers != before).sum() > self.share * len(integers):
                return False
            last, error = error, validate()
            return error > (1 - self.gain) * last

        return settled


#: Type of a parameter that takes the config of such a rule.
StoppingConfig = Annotated[dict, Config(WhenSettled, TASK_UTILS)]


@torch.no_grad()
def _integers(layers: Sequence[QuantLayer]) -> Tensor:
    """Return the integers of all weights now, concatenated."""
    found = [torch.empty(0, dtype=torch.int16)]
    for layer in layers:
        rounding = layer.weight_quantizer.rounding
        if rounding is not None:
            learning = rounding.training
            found.append(rounding.eval()().flatten().short().cpu())
            rounding.train(learning)
    return torch.cat(found)
