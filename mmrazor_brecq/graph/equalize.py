"""Move the ranges of a norm's channels into the layers that read it.

The channels that a LayerNorm puts out differ in their ranges by factors of
ten and more, and a quantizer has one scale for all of them. What the norm's
weight divides by, and its bias subtracts, the next layers' weights multiply
by, and their biases add (Li et al., "RepQ-ViT", ICCV 2023).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Optional

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from ..layers import is_layer
from .compare import Rewrite
from .record import Recording, Value

#: Operations of ATen whose result has elements of its input, and no others.
MOVES = frozenset(
    '_reshape_alias _to_copy _unsafe_view alias chunk clone contiguous detach '
    'expand flip index index_select narrow permute reshape roll select slice '
    'split split_with_sizes squeeze t transpose unbind unsafe_chunk '
    'unsafe_split unsafe_split_with_sizes unsqueeze view'.split()
)
#: Those that put zeros beside them.
PADS = frozenset(['constant_pad_nd'])


@dataclass
class ReadNorm:
    """A norm whose output goes to layers, and nowhere else.

    Attributes:
        name (str): Name of the norm.
        layers (list[str]): Names of the layers.
        covers (str): Name of a module in which all of them are called.
        shifts (bool): Whether all biases are there that an offset needs, and
            no zeros come between the norm and the layers.
    """

    name: str
    layers: list[str]
    covers: str
    shifts: bool


class Equalize(Rewrite):
    """Rewrite that gives the channels between a norm and layers new ranges.

    Args:
        network (nn.Module): The network.
        read (ReadNorm): Norm and layers in it.
        factor (Tensor): Each channel is divided by its factor, of shape C.
        offset (Tensor): What is subtracted before that, of shape C; zeros
            unless ``read.shifts``.
    """

    def __init__(
        self,
        network: nn.Module,
        read: ReadNorm,
        factor: Tensor,
        offset: Tensor,
    ) -> None:
        super().__init__(read.covers)
        self.read = read
        self.norm = network.get_submodule(read.name)
        self.layers = [network.get_submodule(name) for name in read.layers]
        self.factor, self.offset = factor.double(), offset.double()
        # The parameter, which a quantized layer has another property for.
        self.before = [
            (parameter, parameter.data)
            for module in (self.norm, *self.layers)
            for key in ('weight', 'bias')
            if (parameter := module._parameters.get(key)) is not None
        ]

    @torch.no_grad()
    def apply(self) -> None:
        """Change norm and layers, in new memory."""
        factor, offset = self.factor, self.offset
        set_values(
            self.norm, 'weight', values_of(self.norm, 'weight') / factor
        )
        if 'bias' in own(self.norm):
            bias = values_of(self.norm, 'bias') - offset
            set_values(self.norm, 'bias', bias / factor)
        for layer in self.layers:
            weight = values_of(layer, 'weight')
            channels = (1, -1, *[1] * (weight.dim() - 2))
            if self.read.shifts:
                more = (weight * offset.view(channels)).flatten(1).sum(1)
                set_values(layer, 'bias', values_of(layer, 'bias') + more)
            set_values(layer, 'weight', weight * factor.view(channels))

    def undo(self) -> None:
        """Restore norm and layers."""
        for parameter, values in self.before:
            parameter.data = values


def own(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters of a module itself that are there."""
    return {k: v for k, v in module._parameters.items() if v is not None}


def values_of(module: nn.Module, key: str) -> Tensor:
    """Return a parameter of a module itself in float64."""
    return own(module)[key].detach().double()


def set_values(module: nn.Module, key: str, values: Tensor) -> None:
    """Give a parameter of a module itself other values."""
    parameter = own(module)[key]
    # In new memory of the same order: another tensor may share the old one.
    parameter.data = parameter.data.clone().copy_(values)


def is_norm(module: nn.Module) -> bool:
    """Return whether a module has a factor for each channel, and no more.

    Whether its output is proportional to it, a comparison has to show.
    """
    there = own(module)
    return (
        not is_layer(module)
        and not isinstance(module, _BatchNorm)
        and not any(True for _ in module.children())
        and {'weight'} <= {*there} <= {'weight', 'bias'}
        and all(x.dim() == 1 and x.is_floating_point() for x in there.values())
        and len({len(x) for x in there.values()}) == 1
    )


def find_read_norms(
    network: nn.Module,
    recording: Recording,
    between: frozenset[str] = MOVES,
) -> list[ReadNorm]:
    """Find the norms that only layers read, each channel a column of theirs.

    Views and copies may come between them, and zeros, which an offset would
    change.

    Args:
        network (nn.Module): The network, in evaluation mode.
        recording (Recording): A recorded pass of it.
        between (frozenset[str]): Operations that may come between them.
    """
    found = (
        _read_norm(module, recording, between)
        for module in recording.by_module()
        if is_norm(module)
    )
    return [read for read in found if read is not None]


def _read_norm(
    norm: nn.Module, recording: Recording, between: frozenset[str]
) -> Optional[ReadNorm]:
    """Return a norm with its readers, None if something else reads it."""
    calls = recording.by_module()
    if any(len(call.outputs) != 1 for call in calls[norm]) or any(
        recording.readers(x) != {norm} for x in own(norm).values()
    ):
        return None
    outputs = {call.outputs[0] for call in calls[norm]}
    reached = reached_from(outputs, recording, between)
    if reached is None or not reached.layers:
        return None
    by_name = {call.name: call.module for call in recording.calls}
    layers = [by_name[name] for name in sorted(reached.layers)]
    channels = len(own(norm)['weight'])
    for layer in layers:
        inputs = [call.inputs[:1] for call in calls[layer]]
        if (
            not all(x and x[0] in reached.values for x in inputs)
            or not takes_channels(layer, channels)
            or recording.readers(own(layer)['weight']) != {layer}
        ):
            return None
    return ReadNorm(
        calls[norm][0].name,
        [calls[layer][0].name for layer in layers],
        _covering([calls[layer][0].name for layer in layers], {*by_name}),
        not reached.padded
        and all('bias' in own(x) for x in (norm, *layers))
        and not any(_pads(layer) for layer in layers),
    )


@dataclass
class Reached:
    """Values that hold the same elements, and the layers that read them."""

    values: set[Value]
    layers: set[str]
    padded: bool = False


def reached_from(
    start: set[Value], recording: Recording, between: frozenset[str] = MOVES
) -> Optional[Reached]:
    """Follow values to layers, None if they go elsewhere, too.

    Args:
        start (set[Value]): The values.
        recording (Recording): A recorded pass.
        between (frozenset[str]): Operations that may come between them.
    """
    names = {c.name for c in recording.calls if recording.has_weight(c.module)}
    reached = Reached({*start}, set())
    for operation in recording.operations:
        if reached.values.isdisjoint(operation.inputs):
            continue
        if operation.caller in names:
            reached.layers.add(operation.caller)
        elif operation.name in between or operation.name in PADS:
            reached.padded |= operation.name in PADS
            reached.values.update(operation.outputs)
        else:
            return None
    if reached.values.isdisjoint(recording.calls[0].outputs):
        return reached
    return None


def takes_channels(layer: nn.Module, channels: int) -> bool:
    """Return whether each input channel has a column of a layer's weight."""
    weight = own(layer)['weight']
    groups = getattr(layer, 'groups', 1)
    return groups == 1 and weight.shape[1] == channels


def _pads(layer: nn.Module) -> bool:
    """Return whether a layer puts something beside its input."""
    padding: Any = getattr(layer, 'padding', 0)
    if isinstance(padding, str):
        return padding != 'valid'
    return bool(torch.tensor(padding).any())


def _covering(names: list[str], called: set[str]) -> str:
    """Return the smallest module around all of some that is called."""
    if len(names) == 1:
        return names[0]
    parts = [name.split('.') for name in names]
    common = []
    for same_level in zip(*parts):
        if len({*same_level}) > 1:
            break
        common.append(same_level[0])
    while common and '.'.join(common) not in called:
        common.pop()
    return '.'.join(common)


def channel_dim(layer: nn.Module) -> int:
    """Return the dimension of channels of a layer's input and output."""
    return -1 - len(layer.kernel_size) if isinstance(layer, _ConvNd) else -1


def as_rows(x: Tensor, layer: nn.Module) -> Tensor:
    """Return a layer's input as rows, one column for each channel.

    Args:
        x (Tensor): N x ... x C of a linear layer, else N x C x ...
        layer (nn.Module): The layer.

    Returns:
        Tensor: M x C.
    """
    x = x.movedim(channel_dim(layer), -1)
    return x.detach().flatten(0, -2) if x.dim() > 1 else x.detach()[None]


def equalized_as(
    network: nn.Module, recording: Recording, state: Mapping[str, Tensor]
) -> list[Equalize]:
    """Return what was done to a network, by the norms of its later state.

    Args:
        network (nn.Module): The float network.
        recording (Recording): A recorded pass of it.
        state (dict): State of it after :class:`Equalize`.
    """
    found = []
    for read in find_read_norms(network, recording):
        norm = network.get_submodule(read.name)
        then = {
            key: state[f'{read.name}.{key}'].double()
            for key in own(norm)
            if f'{read.name}.{key}' in state
        }
        if {*then} != {*own(norm)} or all(
            torch.equal(values_of(norm, key), then[key]) for key in then
        ):
            continue
        factor = values_of(norm, 'weight') / then['weight']
        factor = torch.where(then['weight'] == 0, 1, factor)
        offset = torch.zeros_like(factor)
        if read.shifts:
            offset = values_of(norm, 'bias') - then['bias'] * factor
        found.append(Equalize(network, read, factor, offset))
    return found
