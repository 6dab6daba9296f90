"""What several processes have to agree on.

Each process holds a share of the images. All of them begin with the same
weights and take the same steps, since their gradients are averaged: so they
end with the same integers. In a single process nothing here does anything.
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
    """Random numbers that differ from process to process."""
    return torch.Generator().manual_seed(seed + (get_rank() << 40))


def local_share(count: int) -> int:
    """How much of ``count`` falls to this process: 1 at least."""
    most, rest = divmod(count, get_world_size())
    return max(1, most + (get_rank() < rest))


def sum_over_processes(value: Tensor) -> Tensor:
    """The sum of a tensor over all processes."""
    value = value.clone()
    all_reduce(value, 'sum')
    return value


def gather_rows(rows: Tensor) -> Tensor:
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


def mean_error(errors: Iterable[tuple[Tensor, int]]) -> float:
    """The mean error an image over the images of all processes.

    Args:
        errors (iterable): Mean errors of batches, and their sizes.
    """
    found = torch.zeros(2, dtype=torch.float64)
    for error, images in errors:
        found += torch.tensor([images * float(error), images])
    summed, images = sum_over_processes(found).tolist()
    return summed / max(images, 1)


def copy_from_first_process(tensors: Iterable[Tensor]) -> None:
    """Overwrite tensors by those of the first process."""
    if get_world_size() > 1:
        for x in tensors:
            if not isinstance(x, Tensor):
                continue  # A state of a module's own, the same in all.
            # As bytes, which every backend can send.
            content = x.detach().contiguous().view(-1).view(torch.uint8)
            broadcast(content, 0)
            x.detach().copy_(content.view(x.dtype).view(x.shape))
