"""Put modules into a network for a while."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import nn


@contextmanager
def swapped(
    network: nn.Module, modules: Mapping[str, nn.Module]
) -> Iterator[None]:
    """Return a context in which a network has other modules.

    A module that the network has under several names is replaced under all.

    Args:
        network (nn.Module): The network; it is itself again afterwards.
        modules (dict[str, nn.Module]): The other modules by their names in
            the network, none of them ''.
    """
    others = {network.get_submodule(n): m for n, m in modules.items()}
    places = [
        (parent, name, child)
        for parent in network.modules()
        for name, child in parent._modules.items()
        if child in others
    ]
    try:
        for parent, name, child in places:
            parent._modules[name] = others[child]
        yield
    finally:
        for parent, name, child in places:
            parent._modules[name] = child
