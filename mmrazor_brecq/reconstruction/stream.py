"""Suspended forward passes: every image runs through a network once.

Each batch runs its forward pass in a coroutine that stops at the door of
every unit, hands over the unit's arguments, and goes on when it is given
the unit's output. What waits at a door is all that is held of a batch, and
whatever Python stands between the units simply runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Optional

import torch
from greenlet import getcurrent, greenlet
from torch import Tensor, nn

from ..graph import Unit, run_float

Arguments = tuple[tuple, dict]


class _Pass(greenlet):
    """The forward pass of one batch."""


class _Parked(nn.Module):
    """Stands where a unit's module stood, and asks the hub for its output.

    For all but the suspended passes it is that module.
    """

    def __init__(self, name: str, module: nn.Module) -> None:
        super().__init__()
        self.__dict__.update(unit_name=name, unit_module=module)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        current = getcurrent()
        if not isinstance(current, _Pass):
            return self.unit_module(*args, **kwargs)
        return current.parent.switch((self.unit_name, (args, kwargs)))

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self.unit_module.state_dict(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__['unit_module'], name)


class Stream:
    """The suspended passes of all batches through one network.

    A context manager: within it the units of the network are parked.

    Args:
        holder (nn.Module): A module whose child is the network, so that
            the network itself can be a unit.
        child (str): Name of that child.
        units (list[Unit]): Units of the network.
        batches (list[Tensor]): Preprocessed inputs, N x ... each.
    """

    def __init__(
        self,
        holder: nn.Module,
        child: str,
        units: Sequence[Unit],
        batches: Sequence[Tensor],
    ) -> None:
        self.holder = holder
        self.child = child
        self.units = {unit.module: unit.name for unit in units}
        self.batches = batches

    def __enter__(self) -> Stream:
        self._places: list[tuple[nn.Module, str, nn.Module]] = []
        parked = {m: _Parked(name, m) for m, name in self.units.items()}
        for parent in [
            self.holder,
            *getattr(self.holder, self.child).modules(),
        ]:
            for name, module in list(parent._modules.items()):
                if module in parked:
                    self._places.append((parent, name, module))
                    setattr(parent, name, parked[module])
        network = getattr(self.holder, self.child)
        self._passes = [
            _Pass(lambda x=x: run_float(network, x)) for x in self.batches
        ]
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        for parent, name, module in self._places:
            setattr(parent, name, module)
        self._passes.clear()

    def advance(
        self, outputs: Optional[Sequence[Any]] = None
    ) -> Optional[tuple[str, list[Arguments]]]:
        """Let all passes run on to their next unit.

        Args:
            outputs (list, optional): The output of the unit at which they
                wait, for each batch; none at the beginning.

        Returns:
            tuple, optional: The unit's name, and its arguments for each
            batch; None when the passes have ended.

        Raises:
            RuntimeError: If the passes arrive at different units.
        """
        given = (
            [()] * len(self._passes)
            if outputs is None
            else [(output,) for output in outputs]
        )
        arrived = []
        for suspended, value in zip(self._passes, given):
            # Grad mode belongs to the thread, not to the coroutine.
            with torch.no_grad():
                arrived.append(suspended.switch(*value))
        ended = {suspended.dead for suspended in self._passes}
        if ended == {True}:
            return None
        names = {arrival[0] for arrival in arrived} if len(ended) == 1 else {}
        if len(names) != 1:
            raise RuntimeError(
                'The forward passes of several batches reach different '
                f'units ({sorted(names)}): a network whose way depends on '
                'its data cannot be reconstructed unit by unit'
            )
        return arrived[0][0], [arguments for _, arguments in arrived]
