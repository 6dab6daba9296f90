"""Rotate the channels of residual streams, so that none is an outlier.

A few channels of a residual stream are many times larger than all others,
and a quantizer has one scale for all of them. What writes to the stream is
multiplied by an orthogonal matrix, and what reads it by the inverse; all
channels are then mixtures of all (Ashkboos et al., "QuaRot", NeurIPS 2024).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Optional

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from ..runtime.distributed import copy_from_first_process
from .compare import NETWORK, Rewrite, apply_checked
from .equalize import Equalize, is_norm, own, set_values, values_of
from .record import record
from .residual import ResidualStream, find_streams
from .samples import Inputs


def rotation(channels: int) -> Tensor:
    """Return an orthogonal matrix that mixes channels, the same each time.

    It is its own inverse, and a vector whose channels are all the same stays
    as it is. So means and variances over channels stay, too, and the matrix
    commutes with layer norms that have no factors and offsets.

    Args:
        channels (int): Number of channels.

    Returns:
        Tensor: Symmetric, C x C, of float64. Its elements are of the order
        of 1 / sqrt(C).
    """
    power = channels & -channels
    basis = torch.ones(1, 1, dtype=torch.float64)
    while len(basis) < power:  # Hadamard's matrix
        basis = torch.cat(
            [torch.cat([basis, basis], 1), torch.cat([basis, -basis], 1)]
        )
    odd = torch.arange(channels // power, dtype=torch.float64)
    angles = 2 * torch.pi / len(odd) * torch.outer(odd, odd)
    basis = torch.kron(basis, angles.cos() + angles.sin())  # Hartley's
    basis = basis / channels**0.5
    # The first column is constant, and keeps its sign.
    generator = torch.Generator().manual_seed(channels)
    order = torch.randperm(channels - 1, generator=generator)
    signs = torch.ones(channels, dtype=torch.float64)
    signs[1:][order < channels // 2] = -1
    return basis * signs @ basis


class Rotate(Rewrite):
    """Rewrite that rotates the channels of a residual stream.

    What its norms multiply by and add moves to the layers that read them
    before, and factors behind the layers that write to it into these.

    Args:
        network (nn.Module): The network.
        stream (ResidualStream): A stream of it.
    """

    def __init__(self, network: nn.Module, stream: ResidualStream) -> None:
        super().__init__(NETWORK)
        self.network = network
        self.stream = stream
        self.before: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def apply(self) -> None:
        """Change all that writes to the stream and reads it."""
        for read in self.stream.norms:
            self._empty_norm(read.name)
        for layer, factor in self.stream.writers.items():
            if factor:
                self._move_factor(layer, factor)
        matrix = rotation(self.stream.channels)
        for name, channels in _rotated(self.network, self.stream):
            x = _tensor(self.network, name).detach()
            turned = x.double().movedim(channels, -1) @ matrix.to(x.device)
            self._change(name, turned.movedim(-1, channels))

    def undo(self) -> None:
        """Restore all of it."""
        while self.before:
            tensor, values = self.before.pop()
            tensor.data = values

    def _empty_norm(self, name: str) -> None:
        """Move factors, and offsets if they can, out of a norm."""
        read = next(r for r in self.stream.norms if r.name == name)
        norm = self.network.get_submodule(name)
        factor = values_of(norm, 'weight')
        bias = values_of(norm, 'bias') if 'bias' in own(norm) else None
        offset = torch.zeros_like(factor)
        if read.shifts and bias is not None:
            offset = bias
        move = Equalize(self.network, read, factor, offset)
        self.before += move.before
        move.apply()
        # A factor of zero has divided by itself.
        set_values(norm, 'weight', torch.ones_like(factor))
        if read.shifts and bias is not None:
            set_values(norm, 'bias', torch.zeros_like(bias))

    def _move_factor(self, layer: str, name: str) -> None:
        """Multiply a layer by the factor behind it."""
        factor = _tensor(self.network, name).detach().double()
        for key in own(self.network.get_submodule(layer)):
            x = _tensor(self.network, f'{layer}.{key}').detach()
            rows = factor.reshape(-1, *[1] * (x.dim() - 1))
            self._change(f'{layer}.{key}', x * rows)
        self._change(name, torch.ones_like(factor))

    def _change(self, name: str, values: Tensor) -> None:
        tensor = _tensor(self.network, name)
        self.before.append((tensor, tensor.data))
        tensor.data = tensor.data.clone().copy_(values)


def _tensor(network: nn.Module, name: str) -> Tensor:
    """Return a parameter or buffer, of a quantized layer the stored one."""
    path, _, key = name.rpartition('.')
    module = network.get_submodule(path)
    found: Optional[Tensor] = module._parameters.get(key)
    return module._buffers[key] if found is None else found  # type: ignore[return-value]


def _written(network: nn.Module, stream: ResidualStream) -> dict[str, int]:
    """Return what is written to a stream: tensors, and their channels."""
    layers = {
        f'{name}.{key}': 0
        for name in stream.writers
        for key in own(network.get_submodule(name))
    }
    return {**layers, **stream.added}


def _rotated(
    network: nn.Module, stream: ResidualStream
) -> list[tuple[str, int]]:
    """Return all tensors that are rotated, with the dimension of channels."""
    found = [*_written(network, stream).items()]
    found += [(f'{name}.weight', 1) for name in stream.readers]
    for read in stream.norms:
        found += [(f'{name}.weight', 1) for name in read.layers]
        if 'bias' in own(network.get_submodule(read.name)):
            found.append((f'{read.name}.bias', 0))
    return found


@torch.no_grad()
def rotate_streams(network: nn.Module, inputs: Inputs) -> list[ResidualStream]:
    """Rotate the channels of each residual stream that allows it.

    What was done, and what stays and why, is said.

    Args:
        network (nn.Module): The float network; it is changed in place.
        inputs (Tensor | Samples): Preprocessed images, on which its output
            is compared with the one before.

    Returns:
        list[ResidualStream]: The streams that are rotated.
    """
    streams, reasons = find_streams(record(network, inputs))
    done = []
    for stream in streams:
        rewrite = Rotate(network, stream)
        wrong = bool(apply_checked(network, [rewrite], inputs))
        right = torch.tensor(not wrong)
        copy_from_first_process([right])
        if right and wrong:
            rewrite.apply()
        elif not right and not wrong:
            rewrite.undo()
        first, last = stream.norms[0].name, stream.norms[-1].name
        if right:
            done.append(stream)
            print_log(
                f'The {stream.channels} channels that {len(stream.norms)} '
                f'norms read, {first} to {last}, are rotated',
                'current',
            )
        else:
            reasons[first] = (
                'rotated, it changes the output of the network: a norm does '
                'not treat its channels alike, or a hook or other code takes '
                'part in it'
            )
    for name, reason in reasons.items():
        print_log(f'What {name} reads is not rotated: {reason}', 'current')
    if not done:
        print_log(
            'Nothing is rotated (`model.rotate=True`): '
            + (
                'no residual stream allows it'
                if reasons
                else 'the network has no norm that reads a residual stream'
            ),
            'current',
        )
    return done


@torch.no_grad()
def rotate_as(
    network: nn.Module, inputs: Inputs, state: Mapping[str, Tensor]
) -> None:
    """Rotate what a later state of a network has rotated.

    What writes to a stream is nearer to the state either as it is, or
    rotated.

    Args:
        network (nn.Module): The float network; it is changed in place.
        inputs (Tensor | Samples): Any inputs that it takes.
        state (dict): State of it, quantized.
    """
    if not any(map(is_norm, network.modules())):
        return
    streams, _ = find_streams(record(network, inputs))
    for stream in streams:
        rewrite = Rotate(network, stream)
        before = _distance(network, stream, state)
        rewrite.apply()
        if not _distance(network, stream, state) < before:
            rewrite.undo()


def _distance(
    network: nn.Module, stream: ResidualStream, state: Mapping[str, Tensor]
) -> float:
    """Return how far what is written to a stream is from a state."""
    distance = 0.0
    for name in _written(network, stream):
        mine, later = _tensor(network, name), _real(name, state)
        if later is not None and later.shape == mine.shape:
            distance += float((later.to(mine) - mine).square().sum())
    return distance


def _real(name: str, state: Mapping[str, Tensor]) -> Optional[Tensor]:
    """Return the real values of a tensor in a state, None if it has none."""
    values = state.get(name)
    if values is None or values.is_floating_point():
        return values
    start = name.removesuffix('weight') + 'weight_quantizer.'
    scale = state.get(f'{start}scale')
    zero_point = state.get(f'{start}zero_point')
    if scale is None or zero_point is None or zero_point.shape != scale.shape:
        return None
    if scale.shape not in ((1,), values.shape[:1]):
        return None
    rows = -1, *[1] * (values.dim() - 1)
    return (values - zero_point.view(rows).to(scale)) * scale.view(rows)
