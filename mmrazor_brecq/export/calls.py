"""Find which call of a module in torch is which call in a file.

A file has fewer calls where two of them have the same input and become one,
or where nothing uses the output of a call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Optional

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..functional import leaves
from ..graph import run_float


class CallMatcher:
    """Assignment of a module's calls in torch to those in the file.

    Args:
        first_calls (list[int]): For each call in torch, the index of the
            first call that had the same input: its own, if none did.
        found (int): Number of calls in the file.
    """

    def __init__(self, first_calls: Sequence[int], found: int) -> None:
        self.first_calls = first_calls
        self.found = found
        self.surplus = len(first_calls) - found
        self.assigned: dict[int, int] = {}
        self.call = -1
        self.next = 0

    def index(self, fits: Callable[[int], bool]) -> Optional[int]:
        """Return the index in the file of the next call in torch.

        Args:
            fits (callable): Returns whether the call at an index of the
                file can be this one; asked only while torch has more calls
                left than the file.

        Returns:
            int: The index; None if the file has no such call.
        """
        self.call += 1
        known = self.call < len(self.first_calls)
        first = self.first_calls[self.call] if known else -1
        if self.surplus > 0 and first in self.assigned:
            self.surplus -= 1
            return self.assigned[first]
        if self.next >= self.found:
            return None
        if self.surplus > 0 and not fits(self.next):
            self.surplus -= 1
            return None
        self.assigned.setdefault(first, self.next)
        self.next += 1
        return self.next - 1


def find_first_calls(
    network: nn.Module, images: Tensor, modules: Mapping[str, nn.Module]
) -> dict[str, list[int]]:
    """Find calls of modules that have the same input.

    Args:
        network (nn.Module): Run once.
        images (Tensor): N x ... preprocessed images.
        modules (dict[str, nn.Module]): Modules of the network, by name.

    Returns:
        dict[str, list[int]]: For each call of each module, the index of the
        first call of this module that had the same input.
    """
    inputs: dict[str, list[Tensor]] = {name: [] for name in modules}
    first_calls: dict[str, list[int]] = {name: [] for name in modules}

    def watch(name: str, module: nn.Module) -> RemovableHandle:
        def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
            x = leaves((args, kwargs))[0]
            equal = (i for i, y in enumerate(inputs[name]) if _equal(x, y))
            first_calls[name].append(next(equal, len(inputs[name])))
            inputs[name].append(x.clone())

        return module.register_forward_pre_hook(hook, with_kwargs=True)

    run_with([watch(*pair) for pair in modules.items()], network, images)
    return first_calls


def _equal(x: Tensor, y: Tensor) -> bool:
    return x.shape == y.shape and torch.equal(x, y)


def run_with(
    hooks: Iterable[RemovableHandle], network: nn.Module, images: Tensor
) -> object:
    """Run a network, and remove its hooks.

    Args:
        hooks (list[RemovableHandle]): Already registered.
        network (nn.Module): Any.
        images (Tensor): N x ... preprocessed images.

    Returns:
        object: Its output.
    """
    try:
        with torch.no_grad():
            return run_float(network, images)
    finally:
        for handle in hooks:
            handle.remove()
