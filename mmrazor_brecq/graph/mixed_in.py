"""Classes that are put before the class of a module, in place."""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import nn


class MixedIn(nn.Module):
    """Base class of what is mixed into the class of a module.

    Example:
        >>> class Silent(MixedIn):
        ...     def extra_repr(self):
        ...         return ''
        >>> mix_in(Silent, layer)
    """

    def __reduce_ex__(self, protocol: Any) -> tuple:
        """Pickle by the class of the module, which can be imported."""
        reduced = super().__reduce_ex__(protocol)
        assert isinstance(reduced, tuple)
        return (_new_module, type(self).__bases__, *reduced[2:])


def mix_in(mixin: type, module: nn.Module) -> None:
    """Let a module be one of a class besides its own, unless it is already.

    Args:
        mixin (type): The class; its methods come first.
        module (nn.Module): Its class is another one afterwards, of the same
            name.
    """
    if not isinstance(module, mixin):
        cls: Any = type(module)
        module.__class__ = _mixed_class(mixin, cls)


@cache
def _mixed_class(mixin: type, cls: type) -> Any:
    return type(cls.__name__, (mixin, cls), {})


def _new_module(mixin: type, cls: type) -> Any:
    """Return an empty module of the class made of both, for pickle."""
    mixed = _mixed_class(mixin, cls)
    return mixed.__new__(mixed)
