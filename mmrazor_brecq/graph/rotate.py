"""Rotate channels, so that none is an outlier.

A few channels of a residual stream are many times larger than all others,
and a quantizer has one scale for all of them. What writes to the stream is
multiplied by an orthogonal matrix, and what reads it by the inverse; all
channels are then mixtures of all (Ashkboos et al., "QuaRot", NeurIPS 2024).
So are the values of each head of attention, which mixes tokens only.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from .compare import NETWORK, Rewrite
from .equalize import Equalize, ReadNorm, own, set_values, values_of
from .heads import ValueHeads
from .residual import ResidualStream

#: Elements of all matrices that one is chosen from, where it is not alone.
LARGEST_WORK = 2**22


@functools.lru_cache(8)
def rotation(channels: int) -> Tensor:
    """Return an orthogonal matrix that mixes channels, the same each time.

    It is its own inverse, and a vector whose channels are all the same stays
    as it is. So means and variances over channels stay, too, and the matrix
    commutes with layer norms that have no factors and offsets.

    Args:
        channels (int): Number of channels.

    Returns:
        Tensor: Symmetric, C x C, of float64. Its elements are of the order
        of 1 / sqrt(C): of some matrices it is the one whose largest element
        is the smallest.
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
    generator = torch.Generator().manual_seed(channels)
    tries = min(max(1, LARGEST_WORK // channels**2), 32)
    signs = 2.0 * torch.randint(2, (tries, channels), generator=generator) - 1
    signs[:, 0] = 1  # The first column of the basis is constant.
    found = (basis * one.double() @ basis for one in signs)
    return min(found, key=lambda matrix: float(matrix.abs().max()))


class Rotation(Rewrite):
    """Rewrite that multiplies weights of a network by orthogonal matrices.

    Args:
        name (str): As of :class:`Rewrite`.
        network (nn.Module): The network.
        reads (list[str]): Names of the modules that read what is rotated.
    """

    def __init__(
        self, name: str, network: nn.Module, reads: list[str]
    ) -> None:
        super().__init__(name)
        self.network = network
        self.reads = reads
        self.before: list[tuple[Tensor, Tensor]] = []

    def undo(self) -> None:
        """Restore all of it."""
        while self.before:
            tensor, values = self.before.pop()
            tensor.data = values

    def on(self, network: nn.Module) -> Rotation:
        """Return the same rewrite of another network of this structure."""
        raise NotImplementedError

    def telling(self) -> list[str]:
        """Return names of tensors that tell whether they are rotated.

        Nothing but rotations changes these, before they are rounded.
        """
        raise NotImplementedError

    def change(self, name: str, values: Tensor) -> None:
        """Give a parameter or buffer other values, in new memory."""
        tensor = tensor_of(self.network, name)
        self.before.append((tensor, tensor.data))
        tensor.data = tensor.data.clone().copy_(values)

    def turn(
        self, name: str, dim: int, matrix: Tensor, groups: Tensor
    ) -> None:
        """Multiply channels of a parameter or buffer by a matrix.

        Args:
            name (str): Its name.
            dim (int): Dimension of its channels.
            matrix (Tensor): C x C.
            groups (Tensor): Channels that are multiplied, G x C.
        """
        values = tensor_of(self.network, name).detach().double()
        values = values.movedim(dim, -1).clone()
        groups = groups.to(values.device)
        values[..., groups] = values[..., groups] @ matrix.to(values)
        self.change(name, values.movedim(-1, dim))


class RotateHeads(Rotation):
    """Rewrite that rotates what each head of attention puts out.

    Args:
        network (nn.Module): The network.
        heads (ValueHeads): Heads of it.
    """

    def __init__(self, network: nn.Module, heads: ValueHeads) -> None:
        super().__init__(heads.reader, network, [heads.reader])
        self.heads = heads

    @torch.no_grad()
    def apply(self) -> None:
        """Change the layers before and behind the heads."""
        heads = self.heads
        matrix = rotation(heads.rows.shape[1])
        for key in own(self.network.get_submodule(heads.writer)):
            self.turn(f'{heads.writer}.{key}', 0, matrix, heads.rows)
        self.turn(f'{heads.reader}.weight', 1, matrix, heads.columns)

    def on(self, network: nn.Module) -> RotateHeads:
        """Return the same rewrite of another network of this structure."""
        return RotateHeads(network, self.heads)

    def __str__(self) -> str:
        count, channels = self.heads.rows.shape
        return (
            f'The {channels} channels of each of {count} heads in '
            f'{self.heads.product}'
        )

    def telling(self) -> list[str]:
        """Return the weight behind the heads.

        Factors of a norm may have moved to the one before them.
        """
        return [f'{self.heads.reader}.weight']


class RotateStream(Rotation):
    """Rewrite that rotates the channels of a residual stream.

    What its norms multiply by and add moves to the layers that read them
    before, and factors behind the layers that write to it into these.

    Args:
        network (nn.Module): The network.
        stream (ResidualStream): A stream of it.
    """

    def __init__(self, network: nn.Module, stream: ResidualStream) -> None:
        super().__init__(NETWORK, network, [x.name for x in stream.norms])
        self.stream = stream

    @torch.no_grad()
    def apply(self) -> None:
        """Change all that writes to the stream and reads it."""
        for read in self.stream.norms:
            self._empty_norm(read)
        for layer, factor in self.stream.writers.items():
            if factor:
                self._move_factor(layer, factor)
        matrix = rotation(self.stream.channels)
        channels = torch.arange(self.stream.channels)[None]
        for name, dim in self._rotated():
            self.turn(name, dim, matrix, channels)

    def on(self, network: nn.Module) -> RotateStream:
        """Return the same rewrite of another network of this structure."""
        return RotateStream(network, self.stream)

    def __str__(self) -> str:
        return (
            f'The {self.stream.channels} channels that {len(self.reads)} '
            f'norms read, {self.reads[0]} to {self.reads[-1]}'
        )

    def telling(self) -> list[str]:
        """Return what is written to the stream.

        Factors of norms may have moved to what reads it.
        """
        return [*self._written()]

    def _written(self) -> dict[str, int]:
        """Return the tensors written to the stream, and their channels."""
        layers = {
            f'{name}.{key}': 0
            for name in self.stream.writers
            for key in own(self.network.get_submodule(name))
        }
        return {**layers, **self.stream.added}

    def _rotated(self) -> list[tuple[str, int]]:
        """Return all tensors that are rotated, and their channels."""
        found = [*self._written().items()]
        found += [(f'{name}.weight', 1) for name in self.stream.readers]
        for read in self.stream.norms:
            found += [(f'{name}.weight', 1) for name in read.layers]
            if 'bias' in own(self.network.get_submodule(read.name)):
                found.append((f'{read.name}.bias', 0))
        return found

    def _empty_norm(self, read: ReadNorm) -> None:
        """Move factors, and offsets if they can, out of a norm."""
        norm = self.network.get_submodule(read.name)
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
        factor = tensor_of(self.network, name).detach().double()
        for key in own(self.network.get_submodule(layer)):
            x = tensor_of(self.network, f'{layer}.{key}').detach()
            rows = factor.reshape(-1, *[1] * (x.dim() - 1))
            self.change(f'{layer}.{key}', x * rows)
        self.change(name, torch.ones_like(factor))


def tensor_of(network: nn.Module, name: str) -> Tensor:
    """Return a parameter or buffer, of a quantized layer the stored one."""
    path, _, key = name.rpartition('.')
    module = network.get_submodule(path)
    found = module._parameters.get(key)
    if found is None:
        found = module._buffers[key]  # type: ignore[assignment]
    assert found is not None
    return found
