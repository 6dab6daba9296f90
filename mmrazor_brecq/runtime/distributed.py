"""Communication between the processes of one run.

Each process has a part of the images. All begin with the same weights, and
their gradients are averaged, so all end with the same integers. In a single
process these functions change nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

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


def process_generator(seed: int) -> torch.Generator:
    """Return a generator that draws differently in each process.

    Args:
        seed (int): The same in all processes, below 2^40.
    """
    return torch.Generator().manual_seed(seed + (get_rank() << 40))


def local_share(count: int) -> int:
    """Return how many of ``count`` items fall to this process, at least 1."""
    quotient, rest = divmod(count, get_world_size())
    return max(1, quotient + (get_rank() < rest))


def sum_over_processes(value: Tensor) -> Tensor:
    """Return the sum of a tensor over all processes."""
    value = value.clone()
    all_reduce(value, 'sum')
    return value


def gather_rows(rows: Tensor) -> Tensor:
    """Return the rows of all processes, in the order of their ranks.

    Args:
        rows (Tensor): N x D, where N may differ between processes.

    Returns:
        Tensor: M x D, where M is the sum of all N.
    """
    if get_world_size() == 1:
        return rows
    counts = [int(n) for n in all_gather(torch.tensor([len(rows)]))]
    padded = pad(rows, (0, 0, 0, max(counts) - len(rows)))
    return torch.cat([x[:n] for x, n in zip(all_gather(padded), counts)])


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace the gradients of all processes by their mean."""
    if get_world_size() == 1:
        return
    grads = [p.grad for p in parameters if p.grad is not None]
    # One call for all of them, since each call has a fixed cost.
    flat = torch.cat([grad.reshape(-1) for grad in grads])
    all_reduce(flat, 'mean')
    parts = flat.split([grad.numel() for grad in grads])
    for grad, part in zip(grads, parts):
        grad.copy_(part.view_as(grad))


def mean_error(errors: Iterable[tuple[Tensor, int]]) -> float:
    """Return the mean error of an image, over the images of all processes.

    Args:
        errors (iterable): For each batch its mean error and its number of
            images.
    """
    sums = torch.zeros(2, dtype=torch.float64)
    for error, images in errors:
        sums += torch.tensor([images * float(error), images])
    error_sum, images = sum_over_processes(sums).tolist()
    return error_sum / max(images, 1)


def copy_from_first_process(tensors: Iterable[object]) -> None:
    """Overwrite tensors with those of the first process.

    Args:
        tensors (iterable): Values of a ``state_dict``. Those that are no
            tensors (extra states) are the same in all processes.
    """
    if get_world_size() > 1:
        for x in tensors:
            if not isinstance(x, Tensor):
                continue
            # As bytes, which every backend can send.
            content = x.detach().contiguous().view(-1).view(torch.uint8)
            broadcast(content, 0)
            x.detach().copy_(content.view(x.dtype).view(x.shape))
