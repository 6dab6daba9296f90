"""Gradient descent in one process or several."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Callable, ClassVar, Optional

import torch
from mmengine.dist import get_world_size
from torch import Tensor, nn

from ..runtime.distributed import average_gradients, sum_over_processes

#: Decay rates of Adam, for the means of gradients and of their squares. Its
#: usual ones, 0.9 and 0.999, average over more iterations than a unit has.
BETAS = 0.8, 0.95


class CannotLearn(ArithmeticError):
    """Error that ends learning; the message says why."""


class NonFinite(CannotLearn):
    """A NaN or an infinity occurred; the message says where."""


class Descent:
    """Loop of Adam steps that are the same in all processes.

    Learning rates decay to zero along a cosine.

    Args:
        learned (iterable): Pairs of parameters and their learning rate.
        iterations (int): Number of iterations, unless the loop is left.
        curve (list): The index and error of every tenth iteration are
            appended to it.

    Raises:
        CannotLearn: If there is no parameter.

    Example:
        >>> descent = Descent([([weight], 0.1)], iterations=80, curve=[])
        >>> for i in descent:
        ...     descent.backward((weight - 1).square().sum())
        ...     descent.step()
    """

    #: Called in each iteration with the fraction that is done.
    watcher: ClassVar[Optional[Callable[[float], None]]] = None

    def __init__(
        self,
        learned: Iterable[tuple[list[nn.Parameter], float]],
        iterations: int,
        curve: list[tuple[int, float]],
    ) -> None:
        rates: dict[float, list[nn.Parameter]] = {}
        for parameters, rate in learned:
            rates.setdefault(rate, []).extend(parameters)
        # One group for each rate, because every group costs a kernel call.
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
        """Yield the index of each iteration, with gradients reset."""
        watcher = Descent.watcher
        for i in range(self.iterations):
            if watcher is not None:
                watcher(i / self.iterations)
            self.optimizer.zero_grad()
            self._errors = []
            self._has_gradient = False
            yield i

    def backward(self, error: Tensor, loss: Optional[Tensor] = None) -> None:
        """Add the gradients of a batch, or of a part of it.

        Args:
            error (Tensor): A scalar for the curve. If it requires no
                gradient, nothing is added.
            loss (Tensor, optional): The scalar to minimize; by default the
                error.
        """
        if error.requires_grad:
            (error if loss is None else loss).backward()
            self._has_gradient = True
        self._errors.append(error.detach())

    def step(self) -> None:
        """Change the parameters by the mean gradients of all processes.

        Raises:
            CannotLearn: If no error had a gradient.
            NonFinite: If an error is NaN or infinite.
        """
        if not self._has_gradient:
            raise CannotLearn(
                'no gradient comes back, as under `torch.no_grad`, after '
                '`detach`, or if outputs are not real numbers'
            )
        average_gradients(self.parameters)
        self.optimizer.step()
        self.schedule.step()
        if self.taken % 10 == 0:
            error = torch.stack(self._errors).sum()
            self.curve.append((self.taken, _finite(error, self.taken)))
        self.taken += 1


def _finite(error: Tensor, i: int) -> float:
    """Return the mean error of all processes in an iteration."""
    value = float(sum_over_processes(error)) / get_world_size()
    if not math.isfinite(value):
        raise NonFinite(f'NaN or infinity in iteration {i}')
    return value
