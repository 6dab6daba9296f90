"""Suspended forward passes: every image runs through a network once.

Each batch runs its forward pass in a coroutine. The pass stops before every
unit, hands over the unit's arguments, and goes on when it is given the unit's
output. Any Python code between two units simply runs. Of a suspended batch,
only the unit's arguments are kept, in a store: the memory of the suspended
pass itself is freed until the pass goes on, unless memory is ample.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from types import TracebackType
from typing import Any, Optional

import torch
from greenlet import getcurrent, greenlet
from torch import Tensor, nn

from ..functional import Nested
from ..graph import Unit, run_float
from ..runtime.allocator import give_back_freed_memory
from ..runtime.function_modes import active_modes, put_aside
from .batched import CachedBatches
from .cached_tensor import CachedTensor, FreeableTensor

#: Positional and keyword arguments of a unit.
Arguments = tuple[tuple, dict]
#: Freed bytes up to which the system does not get them back.
MAX_FREED_BYTES = 2**26


class _Pass(greenlet):
    """The forward pass of one batch."""

    #: Number of function modes that are active outside of the pass.
    modes_before = 0


class _SuspendingModule(nn.Module):
    """Stands in for a unit's module, and suspends the pass that calls it.

    Outside a suspended pass it does what the unit's module does.
    """

    def __init__(self, name: str, module: nn.Module) -> None:
        super().__init__()
        # Past nn.Module's registration: the unit is not its child.
        self.__dict__.update(unit_name=name, unit_module=module)

    def forward(self, *args: Any, **kwargs: Any) -> Nested:
        current = getcurrent()
        if not isinstance(current, _Pass):
            return self.unit_module(*args, **kwargs)
        # Function modes, too, belong to the thread.
        with put_aside(current.modes_before):
            return current.parent.switch((self.unit_name, (args, kwargs)))

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self.unit_module.state_dict(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__['unit_module'], name)


class Stream:
    """The suspended passes of all batches through one network.

    It is a context manager: within it the modules of the units are replaced
    by modules that suspend the pass.

    Example:
        >>> with Stream(holder, 'network', units, images) as stream:
        ...     arrived = stream.advance()
        ...     while arrived is not None:
        ...         name, inputs = arrived
        ...         arrived = stream.advance(stream.run(modules[name]))

    Args:
        holder (nn.Module): A module whose child is the network, so that
            the network itself can be a unit.
        child (str): Name of that child.
        units (list[Unit]): Units of the network.
        images (CachedBatches): Preprocessed inputs. The arguments of units
            are cached in the same store.
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
        network = getattr(self.holder, self.child)
        self._replaced = self._replace_units(network)
        # A unit may be the network itself.
        network = getattr(self.holder, self.child)
        batches = range(len(self.images.sizes))
        self._passes = [
            _Pass(lambda k=k: run_float(network, self.images.batch(k)))
            for k in batches
        ]
        #: Arguments with which each pass waits at its unit.
        self._waiting: list[Optional[Arguments]] = [None for _ in batches]
        #: Tensors of each pass that are cached, too.
        self._freeable: list[list[FreeableTensor]] = [[] for _ in batches]
        #: Bytes of those of each pass that the store counts as duplicate.
        self._duplicate_bytes = [0 for _ in batches]
        self._freed_bytes = 0
        return self

    def _replace_units(
        self, network: nn.Module
    ) -> list[tuple[nn.Module, str, nn.Module]]:
        """Put suspending modules where units are.

        Returns:
            list[tuple]: Of each replaced module its parent, its name there,
            and the module.
        """
        suspending = {
            module: _SuspendingModule(name, module)
            for module, name in self.units.items()
        }
        replaced = []
        for parent in [self.holder, *network.modules()]:
            for name, module in list(parent._modules.items()):
                if module in suspending:
                    replaced.append((parent, name, module))
                    setattr(parent, name, suspending[module])
        return replaced

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        for parent, name, module in self._replaced:
            setattr(parent, name, module)
        for k in range(len(self._duplicate_bytes)):
            self._count_duplicates(k, 0)
        self._passes.clear()
        self._waiting.clear()
        self._freeable.clear()

    def advance(
        self, outputs: Optional[Iterable[Nested]] = None
    ) -> Optional[tuple[str, CachedBatches]]:
        """Let all passes run on to their next unit, one after the other.

        Args:
            outputs (iterable, optional): The output of the unit at which
                the passes wait, for each batch; None at the beginning.

        Returns:
            tuple[str, CachedBatches], optional: The unit's name, and its
            arguments for all images; None when the passes have ended.

        Raises:
            RuntimeError: If the passes arrive at different units.
        """
        names: list[Optional[str]] = []
        arrivals = self._arrivals(outputs, names)
        first = next(arrivals, None)
        if first is None:
            return None
        return str(names[0]), CachedBatches(
            chain([first], arrivals),
            self.images.sizes,
            self.images.store,
            self._add_freeable,
        )

    def run(self, module: nn.Module) -> Iterator[Nested]:
        """Yield a module's outputs for the waiting arguments of each batch.

        Args:
            module (nn.Module): Takes the arguments of the unit at which the
                passes wait.
        """
        for k, arguments in enumerate(self._waiting):
            assert arguments is not None
            self._restore(k)
            args, kwargs = arguments
            with torch.no_grad():
                output = module(*args, **kwargs)
            yield output
            del output, args, kwargs, arguments
            # An output may be the argument itself, and is read until the
            # next one is asked for; the first two are asked for together.
            if k:
                self._free(k - 1)
                self._free(k)

    def _arrivals(
        self, outputs: Optional[Iterable[Nested]], names: list[Optional[str]]
    ) -> Iterator[Arguments]:
        """Resume each pass; yield the arguments with which it waits next.

        Args:
            outputs (iterable, optional): As in :meth:`advance`.
            names (list): Filled with the unit at which each pass waits.
        """
        values = None if outputs is None else iter(outputs)
        for k, suspended in enumerate(self._passes):
            # A loop over both, by `zip`, would hold the last output as well.
            value = () if values is None else (next(values),)
            self._restore(k)
            self._waiting[k] = None
            # Grad mode belongs to the thread, not to the coroutine, which
            # may set it (inference mode included) between two units.
            suspended.modes_before = active_modes()
            with torch.inference_mode(False), torch.no_grad():
                arrived = suspended.switch(*value)
            del value
            self._freeable[k] = [
                x for x in self._freeable[k] if x.tensor() is not None
            ]
            name, arguments = (None, None) if suspended.dead else arrived
            names.append(name)
            if name != names[0]:
                raise RuntimeError(
                    'The forward passes of several batches reach different '
                    f'units ({sorted(map(str, {name, names[0]}))}): a '
                    'network whose path depends on its data cannot be '
                    'reconstructed unit by unit'
                )
            del arrived
            if arguments is not None:
                self._waiting[k] = arguments
                yield arguments

    def _add_freeable(
        self, k: int, pairs: list[tuple[CachedTensor, Tensor]]
    ) -> None:
        """Note tensors of the k-th pass that are cached now, and free them."""
        start = self.images.starts[k]
        self._freeable[k] += [FreeableTensor(c, start, x) for c, x in pairs]
        self._free(k)

    def _free(self, k: int) -> None:
        """Free the tensors of the k-th pass, unless memory is ample."""
        if self.images.store.has_ample_memory:
            self._count_duplicates(k, sum(x.nbytes for x in self._freeable[k]))
            return
        # A single batch does not tell what belongs to the images.
        if len(self._freeable) > 1:
            self._freed_bytes += sum(x.free() for x in self._freeable[k])
        if self._freed_bytes > MAX_FREED_BYTES:
            # Else small objects settle in the gaps, which then fit no tensor.
            give_back_freed_memory()
            self._freed_bytes = 0

    def _count_duplicates(self, k: int, nbytes: int) -> None:
        """Tell the store how many bytes the k-th pass duplicates."""
        self.images.store.duplicate_bytes += nbytes - self._duplicate_bytes[k]
        self._duplicate_bytes[k] = nbytes

    @torch.no_grad()
    def _restore(self, k: int) -> None:
        """Fill the freed tensors of the k-th pass again."""
        self._count_duplicates(k, 0)
        self._freeable[k] = [x for x in self._freeable[k] if x.restore()]
