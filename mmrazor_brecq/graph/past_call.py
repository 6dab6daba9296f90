"""Modules whose parent runs ``module.forward(x)`` past ``module(x)``.

No hook sees such a run, so the module is in no recorded pass and could be no
unit. mmdet's detectors run their heads so.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Optional

from torch import nn

from ..layers import MixedIn, mix_in
from .record import Recording

#: Attribute of a module between the begin of its call and its ``forward``.
CALLED = 'is_called'


class CalledModule(MixedIn):
    """Mixin of a module whose ``forward`` is always a call."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        vars(self)[CALLED] = True
        try:
            return super().__call__(*args, **kwargs)
        finally:
            vars(self).pop(CALLED, None)  # A hook may have failed.

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module, through a call if this is none."""
        # It is taken away at once: the pass may be suspended in the module
        # while that of another batch begins.
        if vars(self).pop(CALLED, False):
            return super().forward(*args, **kwargs)
        return self(*args, **kwargs)


def show_calls(
    network: nn.Module,
    recording: Recording,
    state: Optional[Iterable[str]] = None,
) -> bool:
    """Make calls of all runs of modules whose layers are called.

    Args:
        network (nn.Module): The network; the classes of these modules change
            in place.
        recording (Recording): A recorded pass of it.
        state (iterable[str], optional): Keys of a quantized state. Then a
            module counts only if it is a unit there, so that states from
            before this function still fit.

    Returns:
        bool: Whether there are such modules, so that another pass may show
        more.
    """
    called = {call.module for call in recording.calls}
    names = {c.name for c in recording.calls if recording.is_layer(c.module)}
    around = {
        '.'.join(parts[:i])
        for parts in (name.split('.') for name in names)
        for i in range(1, len(parts))
    }
    if state is not None:
        around &= {key.partition('.door.')[0] for key in state}
    found = [
        module
        for module in map(network.get_submodule, sorted(around))
        if module not in called
        and not isinstance(module, CalledModule)
        and _has_forward(module)
    ]
    for module in found:
        mix_in(CalledModule, module)
    return bool(found)


def _has_forward(module: nn.Module) -> bool:
    """Return whether a module's class has a ``forward``, as no list has."""
    return (
        'forward' not in vars(module)
        and type(module).forward is not nn.Module.forward
    )
