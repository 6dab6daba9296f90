"""Integers of a few bits, packed without gaps."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

#: Integers that are handled at once, of which each takes a hundred bytes
#: while it is; a multiple of 8, so that they fill whole bytes.
PART = 2**20


def pack_bits(integers: Tensor, bits: int) -> Tensor:
    """Signed integers as one stream of bits, the low ones first.

    Each is stored as ``q + 2^(b-1)``, so that no sign has to be extended.

    Args:
        integers (Tensor): In ``[-2^(b-1), 2^(b-1) - 1]``, any shape.
        bits (int): Width, 1 to 8.

    Returns:
        Tensor: ``uint8``, ``ceil(n * bits / 8)`` of them; the last one is
        filled up with zeros.
    """
    parts = integers.reshape(-1).split(PART)
    return torch.cat([_pack(part, bits) for part in parts])


def _pack(integers: Tensor, bits: int) -> Tensor:
    offset = integers[:, None].to(torch.int16) + 2 ** (bits - 1)
    stream = ((offset >> torch.arange(bits)) & 1).to(torch.uint8).view(-1)
    stream = torch.cat([stream, stream.new_zeros(-len(stream) % 8)])
    places = torch.arange(8, dtype=torch.uint8)
    return (stream.view(-1, 8) << places).sum(1, dtype=torch.uint8)


def unpack_bits(packed: Tensor, bits: int, shape: Sequence[int]) -> Tensor:
    """Undo :func:`pack_bits`.

    Args:
        packed (Tensor): What it returned.
        bits (int): Width, 1 to 8.
        shape (Sequence[int]): Of the integers.

    Returns:
        Tensor: ``int8`` in that shape.
    """
    whole = torch.empty(math.prod(shape), dtype=torch.int8)
    parts = packed.split(PART * bits // 8)
    for integers, part in zip(whole.split(PART), parts):
        integers.copy_(_unpack(part, bits, len(integers)))
    return whole.view(*shape)


def _unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    places = torch.arange(8, dtype=torch.uint8)
    stream = ((packed.view(-1, 1) >> places) & 1).view(-1)
    stream = stream[: count * bits].view(-1, bits).to(torch.int16)
    offset = (stream << torch.arange(bits)).sum(1)
    return offset - 2 ** (bits - 1)
