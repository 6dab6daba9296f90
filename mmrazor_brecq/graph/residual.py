"""Find residual streams: sums that layers write to and that norms read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Optional

from torch import Tensor, nn

from .equalize import (
    MOVES,
    PADS,
    ReadNorm,
    find_read_norms,
    is_norm,
    own,
    takes_channels,
)
from .origins import Origins, results
from .record import Operation, Recording, Value

#: Operations whose result is a sum of all that they are given, or has all of
#: it side by side.
JOINS = frozenset(['add', 'add_', 'sub', 'sub_', 'cat', 'stack'])
#: Those that average positions.
AVERAGES = frozenset(
    'mean avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d '
    '_adaptive_avg_pool2d _adaptive_avg_pool3d'.split()
)
#: Those that multiply, by one number or by a factor for each channel.
SCALES = frozenset(['mul', 'mul_', 'div', 'div_'])
#: Those that give what their first input has, at the same channels.
KEEPS = MOVES | PADS | AVERAGES | {'embedding'}


@dataclass
class ResidualStream:
    """Tensors of the same channels, from all that writes to all that reads.

    Attributes:
        channels (int): Their number.
        norms (list[ReadNorm]): Norms that read them.
        readers (list[str]): Layers that read them without a norm.
        writers (dict[str, str]): Layers whose output is added, with the name
            of the parameter that it is multiplied by before, '' for none.
        added (dict[str, int]): Parameters and buffers that are added, with
            the dimension of their channels.
    """

    channels: int
    norms: list[ReadNorm]
    readers: list[str]
    writers: dict[str, str]
    added: dict[str, int]


class NoStream(Exception):
    """Says why what a norm reads is no residual stream."""


@dataclass
class _Found:
    """What is met on the way through the operations."""

    values: set[Value] = field(default_factory=set)
    norms: set[str] = field(default_factory=set)
    readers: set[str] = field(default_factory=set)
    writers: dict[str, str] = field(default_factory=dict)
    outputs: set[Value] = field(default_factory=set)
    added: set[str] = field(default_factory=set)
    reasons: list[str] = field(default_factory=list)


def find_streams(
    recording: Recording,
) -> tuple[list[ResidualStream], dict[str, str]]:
    """Find the residual streams of a network.

    Args:
        recording (Recording): A recorded pass of it.

    Returns:
        tuple: The streams, in the order of their first norms, and for each
        other norm why what it reads is none.
    """
    search = _Search(recording)
    streams: list[ResidualStream] = []
    reasons: dict[str, str] = {}
    seen: set[str] = set()
    for name in search.norms:
        if name in seen:
            continue
        found = search.grow(name)
        seen |= found.norms
        try:
            streams.append(search.checked(found))
        except NoStream as reason:
            reasons[name] = str(reason)
    factors = {x for stream in streams for x in stream.writers.values()}
    return streams, {
        name: reason
        for name, reason in reasons.items()
        if f'{name}.weight' not in factors
    }


class _Search:
    """Follows values through the operations of a recorded pass.

    Args:
        recording (Recording): The pass.
    """

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.calls = recording.by_module()
        network = recording.calls[0].module
        self.modules = {call.name: call.module for call in recording.calls}
        self.origins = Origins(recording)
        self.layers = self.origins.layers
        #: Modules with a factor for each channel, in order.
        self.norms = [n for n, m in self.modules.items() if is_norm(m)]
        reads = find_read_norms(network, recording, KEEPS)
        self.reads = {read.name: read for read in reads}
        # What is not saved would not be there when a checkpoint is loaded.
        saved = network.state_dict().keys()
        tensors = [
            *network.named_parameters(remove_duplicate=False),
            *network.named_buffers(remove_duplicate=False),
        ]
        self.constants: dict[str, Tensor] = {
            name: x for name, x in tensors if name in saved
        }
        self.name_of = {x._cdata: n for n, x in self.constants.items()}
        self.uses: dict[Value, list[Operation]] = {}
        for operation in recording.operations:
            for value in operation.inputs:
                self.uses.setdefault(value, []).append(operation)

    def grow(self, norm: str) -> _Found:
        """Return all that is connected to what a norm reads.

        It ends where other code takes part, which is a reason against it.
        """
        found = _Found()
        waiting = [c.inputs[0] for c in self.calls[self.modules[norm]]]
        ends = {*self.recording.calls[0].outputs}
        while waiting:
            value = waiting.pop()
            if value in found.values:
                continue
            found.values.add(value)
            if value in ends:
                found.reasons.append('it is an output of the network')
            waiting += self._origins(value, found)
            for operation in self.uses.get(value, []):
                waiting += self._uses(operation, value, found)
        return found

    def _origins(self, value: Value, found: _Found) -> tuple[Value, ...]:
        """Note what a value comes from, or return what it is made of."""
        operation = self.origins.made.get(value)
        if operation is None:
            name = self.name_of.get(value.tensor)
            if name is None:
                found.reasons.append(
                    'an input of the network is in it, or a tensor that is '
                    'no parameter'
                )
            else:
                found.added.add(name)
            return ()
        if operation.caller in self.layers:
            _note_writer(operation.caller, '', value, found)
            return ()
        if not self._is_own(operation):
            scaled = self._scaled_layer(operation)
            if scaled is None:
                found.reasons.append(f'{_place(operation)} writes to it')
            else:
                _note_writer(*scaled, found)
            return ()
        return _kept(operation)

    def _uses(
        self, operation: Operation, value: Value, found: _Found
    ) -> tuple[Value, ...]:
        """Note who uses a value, or return what is made of it."""
        if operation.caller in self.layers:
            found.readers.add(operation.caller)
            return ()
        if operation.caller in self.norms:
            found.norms.add(operation.caller)
            return ()
        if not self._is_own(operation) or value not in _kept(operation):
            found.reasons.append(f'{_place(operation)} reads it')
            return ()
        return results(operation)

    def _is_own(self, operation: Operation) -> bool:
        """Return whether an operation treats all channels alike."""
        if operation.caller in self.norms:
            return False
        if operation.name in SCALES:
            return len(operation.inputs) == 1
        return operation.name in JOINS or operation.name in KEEPS

    def _scaled_layer(
        self, operation: Operation
    ) -> Optional[tuple[str, str, Value]]:
        """Return layer, factor and output if an operation multiplies them."""
        if operation.name in ('mul', 'mul_') and len(operation.inputs) == 2:
            first, second = map(self.origins.before_moves, operation.inputs)
            for output, factor in ((first, second), (second, first)):
                layer = self.origins.layer(output)
                name = self.name_of.get(factor.tensor)
                if layer is not None and name is not None:
                    return layer, name, output
        return None

    def checked(self, found: _Found) -> ResidualStream:
        """Return what was found as a stream.

        Raises:
            NoStream: If other code takes part, if numbers of channels differ,
                if something has another use, or if the factors of a norm
                cannot leave it.
        """
        for reason in found.reasons:
            raise NoStream(reason)
        widths = {len(own(self.modules[n])['weight']) for n in found.norms}
        if len(widths) != 1:
            raise NoStream(f'its norms have {sorted(widths)} channels')
        (channels,) = widths
        for name in sorted(found.norms):
            self._check_norm(name, found)
        for name in sorted(found.readers):
            self._check_reader(name, channels, found)
        for name, factor in sorted(found.writers.items()):
            self._check_writer(name, factor, channels, found)
        return ResidualStream(
            channels,
            [self.reads[name] for name in self.norms if name in found.norms],
            sorted(found.readers),
            found.writers,
            {n: self._channels_of(n, channels, found) for n in found.added},
        )

    def _check_norm(self, name: str, found: _Found) -> None:
        norm, read = self.modules[name], self.reads.get(name)
        if read is None:
            raise NoStream(f'not only layers read what {name} puts out')
        self._check_inputs(name, found)
        if (
            not read.shifts
            and 'bias' in own(norm)
            and (own(norm)['weight'] == 0).any()
        ):
            raise NoStream(
                f'{name} has weights of zero, and a bias that '
                f'{", ".join(read.layers)} cannot take'
            )

    def _check_inputs(self, name: str, found: _Found) -> None:
        inputs = [call.inputs[:1] for call in self.calls[self.modules[name]]]
        if not all(x and x[0] in found.values for x in inputs):
            raise NoStream(f'{name} reads something else, too')

    def _check_reader(self, name: str, channels: int, found: _Found) -> None:
        layer = self.modules[name]
        if not takes_channels(layer, channels):
            raise NoStream(f'{name} does not read {channels} channels')
        self._check_inputs(name, found)
        self._check_alone(f'{name}.weight', layer)

    def _check_writer(
        self, name: str, factor: str, channels: int, found: _Found
    ) -> None:
        layer: Any = self.modules[name]
        if len(own(layer)['weight']) != channels or (
            getattr(layer, 'groups', 1) != 1
        ):
            raise NoStream(f'{name} does not write {channels} channels')
        calls = self.calls[layer]
        if not all({*call.outputs} <= found.outputs for call in calls):
            raise NoStream(f'something else reads what {name} puts out')
        for key in own(layer):
            self._check_alone(f'{name}.{key}', layer)
        if factor and (
            self.constants[factor].numel() != channels
            or [*found.writers.values()].count(factor) > 1
            or len(self.recording.readers(self.constants[factor])) != 1
        ):
            raise NoStream(f'{factor} is no factor of {name} alone')

    def _check_alone(self, name: str, module: nn.Module) -> None:
        if self.recording.readers(self.constants[name]) != {module}:
            raise NoStream(f'something else reads {name}')

    def _channels_of(self, name: str, channels: int, found: _Found) -> int:
        """Return the dimension of a parameter's channels."""
        x = self.constants[name]
        storage = x.untyped_storage()._cdata
        same = {v for v in self.recording.users if v.storage == storage}
        first = {v for v in same if v not in self.origins.made}
        if not first <= found.values:
            raise NoStream(f'something else reads {name}')
        sizes = [*x.shape]
        if channels not in sizes:
            raise NoStream(f'{name} does not have {channels} channels')
        # Tokens have them last.
        last = sizes[-1] == channels
        return len(sizes) - 1 if last else sizes.index(channels)


def _note_writer(
    layer: str, factor: str, output: Value, found: _Found
) -> None:
    if found.writers.setdefault(layer, factor) != factor:
        found.reasons.append(f'{layer} has several factors')
    found.outputs.add(output)


def _kept(operation: Operation) -> tuple[Value, ...]:
    """Return the inputs whose channels an operation's result has."""
    if operation.name in JOINS:
        return operation.inputs
    return operation.inputs[:1]


def _place(operation: Operation) -> str:
    return f'{operation.name} in {operation.caller or "the network"}'
