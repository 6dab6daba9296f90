"""Gradient descent for what learns, in one process or several."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Optional

import torch
from mmengine.dist import get_world_size
from torch import Tensor, nn

from ..runtime.distributed import average_gradients, sum_over_processes

#: Of Adam: what is kept of the mean of gradients and of their squares.
BETAS = 0.8, 0.95


class CannotLearn(ArithmeticError):
    """What learns has to end; the message says why."""


class NonFinite(CannotLearn):
    """A NaN or an infinity came up; the message says where."""


class Descent:
    """Steps of Adam, the same in all processes.

    Learning rates fall to zero like a cosine. Adam forgets sooner than it
    usually does (0.9 and 0.999), which averages over more iterations than a
    unit has.

    Args:
        learned (iterable): Pairs of parameters and their learning rate.
        iterations (int): How many steps, at the most.
        curve (list): Takes number and error of every tenth iteration.

    Raises:
        CannotLearn: If there is no parameter.

    Example:
        >>> for i in descent:
        ...     descent.backward(error())
        ...     descent.step()
    """

    def __init__(
        self,
        learned: Iterable[tuple[list[nn.Parameter], float]],
        iterations: int,
        curve: list[tuple[int, float]],
    ) -> None:
        rates: dict[float, list[nn.Parameter]] = {}
        for parameters, rate in learned:
            rates.setdefault(rate, []).extend(parameters)
        # As few groups as there are rates: each costs a call.
        groups = [dict(params=ps, lr=rate) for rate, ps in rates.items() if ps]
        if not groups:
            raise CannotLearn('there is nothing to learn')
        self.parameters = [p for ps in rates.values() for p in ps]
        self.optimizer = torch.optim.Adam(groups, betas=BETAS, fused=True)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
            self.optimizer, iterations
        )
        self.iterations = iterations
        self.curve = curve
        self.taken = 0
        self._errors: list[Tensor] = []

    def __iter__(self) -> Iterator[int]:
        """Yield the number of each iteration."""
        for i in range(self.iterations):
            self.optimizer.zero_grad()
            self._errors = []
            self._learns = False
            yield i

    def backward(self, error: Tensor, loss: Optional[Tensor] = None) -> None:
        """Compute the gradients of a batch, or of a part of it.

        Args:
            error (Tensor): A scalar for the curve; it says whether a
                gradient comes back at all.
            loss (Tensor, optional): The scalar to minimize, by default the
                error.
        """
        if error.requires_grad:
            (error if loss is None else loss).backward()
            self._learns = True
        self._errors.append(error.detach())

    def step(self) -> None:
        """Change the parameters by the gradients of all processes.

        Raises:
            CannotLearn: If no error had a gradient.
            NonFinite: If an error is no finite number.
        """
        if not self._learns:
            raise CannotLearn(
                'no gradient comes back, as under `torch.no_grad`, after '
                '`detach`, or where outputs are no real numbers'
            )
        average_gradients(self.parameters)
        self.optimizer.step()
        self.schedule.step()
        if self.taken % 10 == 0:
            error = torch.stack(self._errors).sum()
            self.curve.append((self.taken, _finite(error, self.taken)))
        self.taken += 1


def _finite(error: Tensor, i: int) -> float:
    """Return the error of an iteration, the mean of all processes."""
    value = float(sum_over_processes(error)) / get_world_size()
    if not math.isfinite(value):
        raise NonFinite(f'NaN or infinity in iteration {i}')
    return value
