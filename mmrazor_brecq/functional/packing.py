"""Packing of integers of a few bits, without gaps."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

#: Integers that are packed at a time, since each takes about 100 bytes
#: meanwhile. A multiple of 8, so that they fill whole bytes.
CHUNK = 2**20


def pack_bits(integers: Tensor, bits: int) -> Tensor:
    """Pack signed integers into one stream of bits, lowest bits first.

    Each is stored as ``q + 2^(bits-1)``, so that the stream has no signs.

    Args:
        integers (Tensor): In ``[-2^(bits-1), 2^(bits-1) - 1]``, any shape.
        bits (int): Bit width, 1 to 8.

    Returns:
        Tensor: ``uint8``, ``ceil(n * bits / 8)`` elements for n integers;
        the last one is filled up with zeros.
    """
    chunks = integers.reshape(-1).split(CHUNK)
    return torch.cat([_pack(chunk, bits) for chunk in chunks])


def _pack(integers: Tensor, bits: int) -> Tensor:
    offset = integers[:, None].to(torch.int16) + 2 ** (bits - 1)
    stream = ((offset >> torch.arange(bits)) & 1).to(torch.uint8).view(-1)
    stream = torch.cat([stream, stream.new_zeros(-len(stream) % 8)])
    shifts = torch.arange(8, dtype=torch.uint8)
    return (stream.view(-1, 8) << shifts).sum(1, dtype=torch.uint8)


def unpack_bits(packed: Tensor, bits: int, shape: Sequence[int]) -> Tensor:
    """Undo :func:`pack_bits`.

    Args:
        packed (Tensor): The ``uint8`` stream that it returned.
        bits (int): Bit width, 1 to 8.
        shape (Sequence[int]): Shape of the integers.

    Returns:
        Tensor: ``int8`` in that shape.
    """
    integers = torch.empty(math.prod(shape), dtype=torch.int8)
    chunks = packed.split(CHUNK * bits // 8)
    for target, chunk in zip(integers.split(CHUNK), chunks):
        target.copy_(_unpack(chunk, bits, len(target)))
    return integers.view(*shape)


def _unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    shifts = torch.arange(8, dtype=torch.uint8)
    stream = ((packed.view(-1, 1) >> shifts) & 1).view(-1)
    stream = stream[: count * bits].view(-1, bits).to(torch.int16)
    offset = (stream << torch.arange(bits)).sum(1)
    return offset - 2 ** (bits - 1)
