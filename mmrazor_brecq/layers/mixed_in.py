"""Change the class of a module: the object, its names and hooks stay."""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import nn


class MixedIn(nn.Module):
    """Base of the mixins that a module's class gets in front of it."""

    #: What the name of the class begins with.
    prefix = ''

    def __reduce_ex__(self, protocol: Any) -> tuple:
        """Pickle by the module's own class.

        The class with the mixin is made when it is needed, so pickle cannot
        import it by name.
        """
        reduced = super().__reduce_ex__(protocol)
        assert isinstance(reduced, tuple)
        cls: type = type(self)
        mixins = []
        while cls in _made:
            mixin, cls = cls.__bases__
            mixins.append(mixin)
        return (_new_module, (cls, *reversed(mixins)), *reduced[2:])


#: The classes that were made of a mixin and another class.
_made: set[type] = set()


@cache
def _class_with(mixin: type, cls: type) -> type[MixedIn]:
    name = f'{mixin.prefix}{cls.__name__}'  # type: ignore[attr-defined]
    made = type(name, (mixin, cls), {})
    _made.add(made)
    return made


def mix_in(mixin: type, module: nn.Module) -> None:
    """Put a mixin in front of the class of a module, unless it is there.

    Args:
        mixin (type): The mixin; its methods come first.
        module (nn.Module): Its class is another one afterwards.
    """
    if not isinstance(module, mixin):
        cls: type = type(module)
        module.__class__ = _class_with(mixin, cls)


def _new_module(cls: type, *mixins: type) -> nn.Module:
    """Return an empty module of a class and mixins, for pickle."""
    for mixin in mixins:
        cls = _class_with(mixin, cls)
    return cls.__new__(cls)  # type: ignore[call-overload]
