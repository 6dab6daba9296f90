"""What several processes have to agree on.

Each process holds a share of the images. All of them begin with the same
weights and take the same steps, since their gradients are averaged: so they
end with the same integers. In a single process nothing here does anything.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Callable, Optional

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


def adam(
    learned: Iterable[tuple[list[nn.Parameter], float]],
) -> Optional[torch.optim.Optimizer]:
    """An optimiser of parameters that learn at rates of their own.

    It forgets sooner than Adam usually does (0.9 and 0.999): the latter
    averages over more iterations than a unit has.

    Args:
        learned (iterable): Parameters and their learning rate.

    Returns:
        Optimizer, optional: None if there is no parameter.
    """
    rates: dict[float, list[nn.Parameter]] = {}
    for parameters, rate in learned:
        rates.setdefault(rate, []).extend(parameters)
    # As few groups as there are rates: each costs a call.
    groups = [dict(params=ps, lr=rate) for rate, ps in rates.items() if ps]
    if not groups:
        return None
    return torch.optim.Adam(groups, betas=BETAS, fused=True)


def minimise(
    errors: Callable[[int], Iterable[Tensor]],
    optimizer: torch.optim.Optimizer,
    iterations: int,
    curve: list[tuple[int, float]],
    scale: float = 1.0,
    settled: Optional[Callable[[int], bool]] = None,
) -> int:
    """Let an optimiser take its steps, the same in all processes.

    Its learning rates fall to nothing, like a cosine.

    Args:
        errors (callable): Gives the errors of an iteration, given its
            number: scalars whose sum is to fall, of this process' images.
            Each is asked for when the one before it has left its gradient,
            so that only one of them holds memory.
        optimizer (Optimizer): Holds what is learned.
        iterations (int): How many steps, at the most.
        curve (list): Takes number and error of every tenth iteration.
        scale (float): What errors are divided by, but in the curve.
        settled (callable, optional): Whether an iteration is to be the
            last, given its number.

    Returns:
        int: How many steps were taken.

    Raises:
        CannotLearn: If no error has a gradient.
        NonFinite: If an error is no finite number.
    """
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimizer, iterations
    )
    learned = [p for group in optimizer.param_groups for p in group['params']]
    for i in range(iterations):
        optimizer.zero_grad()
        seen, learns = [], False
        for error in errors(i):
            if error.requires_grad:
                (error / scale).backward()
                learns = True
            seen.append(error.detach())
        if not learns:
            raise CannotLearn(
                'no gradient comes back, as under `torch.no_grad`, after '
                '`detach`, or where outputs are no real numbers'
            )
        average_gradients(learned)
        optimizer.step()
        schedule.step()
        if i % 10 == 0:
            curve.append((i, _finite(torch.stack(seen).sum(), i)))
        if settled and settled(i):
            return i + 1
    return iterations


def _finite(error: Tensor, i: int) -> float:
    """The error of an iteration, the mean of all processes."""
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
