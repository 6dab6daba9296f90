"""What several processes have to agree on.

Each process holds a share of the images. All of them begin with the same
weights and take the same steps, since their gradients are averaged: so they
end with the same integers. In a single process nothing here does anything.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Optional

import torch
from mmengine.dist import (
    all_gather,
    all_reduce,
    broadcast,
    get_rank,
    get_world_size,
)
from torch import Tensor, nn
from torch.nn.functional import pad

#: Of Adam: what is kept of the mean of gradients and of their squares.
BETAS = 0.8, 0.95


class CannotLearn(ArithmeticError):
    """What learns has to end; the message says why."""


class NonFinite(CannotLearn):
    """A NaN or an infinity came up; the message says where."""


def own_generator(seed: int) -> torch.Generator:
    """Random numbers that differ from process to process."""
    return torch.Generator().manual_seed(seed + (get_rank() << 40))


def share(count: int) -> int:
    """How much of ``count`` falls to this process: 1 at least."""
    most, rest = divmod(count, get_world_size())
    return max(1, most + (get_rank() < rest))


def total(value: Tensor) -> Tensor:
    """The sum of a tensor over all processes."""
    value = value.clone()
    all_reduce(value, 'sum')
    return value


def gathered(rows: Tensor) -> Tensor:
    """The rows of all processes, those of the first process first.

    Args:
        rows (Tensor): N x D, where N may differ between processes.
    """
    if get_world_size() == 1:
        return rows
    counts = [int(n) for n in all_gather(torch.tensor([len(rows)]))]
    level = pad(rows, (0, 0, 0, max(counts) - len(rows)))
    return torch.cat([x[:n] for x, n in zip(all_gather(level), counts)])


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Give all processes the mean of their gradients."""
    if get_world_size() == 1:
        return
    grads = [p.grad for p in parameters if p.grad is not None]
    together = torch.cat([grad.reshape(-1) for grad in grads])
    all_reduce(together, 'mean')
    parts = together.split([grad.numel() for grad in grads])
    for grad, part in zip(grads, parts):
        grad.copy_(part.view_as(grad))


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
    value = float(total(error)) / get_world_size()
    if not math.isfinite(value):
        raise NonFinite(f'NaN or infinity in iteration {i}')
    return value


def mean_error(errors: Iterable[tuple[Tensor, int]]) -> float:
    """The mean error an image over the images of all processes.

    Args:
        errors (iterable): Mean errors of batches, and their sizes.
    """
    found = torch.zeros(2, dtype=torch.float64)
    for error, images in errors:
        found += torch.tensor([images * float(error), images])
    summed, images = total(found).tolist()
    return summed / max(images, 1)


def take_from_first(tensors: Iterable[Tensor]) -> None:
    """Overwrite tensors by those of the first process."""
    if get_world_size() > 1:
        for x in tensors:
            if not isinstance(x, Tensor):
                continue  # A state of a module's own, the same in all.
            # As bytes, which every backend can send.
            content = x.detach().contiguous().view(-1).view(torch.uint8)
            broadcast(content, 0)
            x.detach().copy_(content.view(x.dtype).view(x.shape))
