"""Suspended forward passes: every image runs through a network once.

Each batch runs its forward pass in a coroutine that stops at the door of
every unit, hands over the unit's arguments, and goes on when it is given
the unit's output. Whatever Python stands between the units simply runs. What
waits at a door is all that is held of a batch, and it is held in a store: the
memory of a suspended pass itself is given back until the pass goes on, unless
the store has ample room.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, repeat
from types import TracebackType
from typing import Any, Optional

import torch
from greenlet import getcurrent, greenlet
from torch import Tensor, nn

from ..graph import Unit, run_float
from ..runtime.allocator import give_back_freed_memory
from .batched import CachedBatches
from .store import CachedTensor, FreeableTensor

Arguments = tuple[tuple, dict]
#: Bytes that may be free without the system having them back.
LEFT_LYING = 2**26


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
        images (CachedBatches): Preprocessed inputs; what waits is cached in
            the same store.
    """

    def __init__(
        self,
        holder: nn.Module,
        child: str,
        units: Sequence[Unit],
        images: CachedBatches,
    ) -> None:
        self.holder = holder
        self.child = child
        self.units = {unit.module: unit.name for unit in units}
        self.images = images

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
        batches = range(len(self.images.sizes))
        self._passes = [
            _Pass(lambda k=k: run_float(network, self.images.batch(k)))
            for k in batches
        ]
        self._waiting: list[Optional[Arguments]] = [None for _ in batches]
        self._loans: list[list[FreeableTensor]] = [[] for _ in batches]
        #: Bytes of each pass that lie in memory beside the store's.
        self._twice = [0 for _ in batches]
        self._freed = 0
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        for parent, name, module in self._places:
            setattr(parent, name, module)
        for k in range(len(self._twice)):
            self._count(k, 0)
        self._passes.clear()
        self._waiting.clear()
        self._loans.clear()

    def advance(
        self, outputs: Optional[Iterable[Any]] = None
    ) -> Optional[tuple[str, CachedBatches]]:
        """Let all passes run on to their next unit, one after the other.

        Args:
            outputs (iterable, optional): The output of the unit at which
                they wait, for each batch; none at the beginning.

        Returns:
            tuple, optional: The unit's name, and its arguments for all
            images; None when the passes have ended.

        Raises:
            RuntimeError: If the passes arrive at different units.
        """
        names: list[Optional[str]] = []
        arrivals = self._arrivals(outputs, names)
        first = next(arrivals, None)
        if first is None:
            return None
        images = self.images
        return str(names[0]), CachedBatches(
            chain([first], arrivals), images.sizes, images.store, self._lend
        )

    def run(self, module: nn.Module) -> Iterator[Any]:
        """What a module gives for the arguments that wait, batch by batch.

        Args:
            module (nn.Module): Takes a unit's arguments.
        """
        for k, arguments in enumerate(self._waiting):
            self._refill(k)
            args, kwargs = arguments  # type: ignore[misc]
            with torch.no_grad():
                output = module(*args, **kwargs)
            yield output
            del output, args, kwargs, arguments
            if k:  # An output may be the argument itself: let it be read.
                self._drain(k - 1)
        self._drain(len(self._waiting) - 1)

    def _arrivals(
        self, outputs: Optional[Iterable[Any]], names: list[Optional[str]]
    ) -> Iterator[Arguments]:
        """The arguments of each pass where it waits next, and its unit."""
        given = repeat(()) if outputs is None else zip(outputs)
        for k, (suspended, value) in enumerate(zip(self._passes, given)):
            self._refill(k)
            self._waiting[k] = None
            # Grad mode belongs to the thread, not to the coroutine, which
            # may set it, inference mode included, between two units.
            with torch.inference_mode(False), torch.no_grad():
                arrived = suspended.switch(*value)
            del value
            # What nobody holds any more need not be held here either.
            self._loans[k] = [
                x for x in self._loans[k] if x.tensor() is not None
            ]
            name, arguments = (None, None) if suspended.dead else arrived
            names.append(name)
            if name != names[0]:
                raise RuntimeError(
                    'The forward passes of several batches reach different '
                    f'units ({sorted(map(str, {name, names[0]}))}): a '
                    'network whose way depends on its data cannot be '
                    'reconstructed unit by unit'
                )
            del arrived
            if arguments is not None:
                self._waiting[k] = arguments
                yield arguments

    def _lend(self, k: int, held: list[tuple[CachedTensor, Tensor]]) -> None:
        """Part ``k`` is held: what its pass holds too can be freed."""
        start = self.images.starts[k]
        self._loans[k] += [
            FreeableTensor(column, start, x) for column, x in held
        ]
        self._drain(k)

    def _drain(self, k: int) -> None:
        """Free the memory of what the ``k``-th pass and its frames hold."""
        if self.images.store.has_ample_memory:
            self._count(k, sum(loan.size for loan in self._loans[k]))
            return
        # Only two batches tell what is of images and what of the network.
        for loan in self._loans[k] if len(self._loans) > 1 else ():
            self._freed += loan.drain()
        if self._freed > LEFT_LYING:
            # Small objects settle in the gaps, which then fit no tensor.
            give_back_freed_memory()
            self._freed = 0

    def _count(self, k: int, twice: int) -> None:
        """Tell the store what the ``k``-th pass has of its own."""
        self.images.store.duplicate_bytes += twice - self._twice[k]
        self._twice[k] = twice

    @torch.no_grad()
    def _refill(self, k: int) -> None:
        self._count(k, 0)
        self._loans[k] = [loan for loan in self._loans[k] if loan.refill()]
