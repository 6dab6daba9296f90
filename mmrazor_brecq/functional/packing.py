"""Integers of a few bits, packed without gaps."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


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
    offset = integers.reshape(-1, 1).to(torch.int16) + 2 ** (bits - 1)
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
    places = torch.arange(8, dtype=torch.uint8)
    stream = ((packed.view(-1, 1) >> places) & 1).view(-1)
    stream = stream[: math.prod(shape) * bits].view(-1, bits).to(torch.int16)
    offset = (stream << torch.arange(bits)).sum(1)
    return (offset - 2 ** (bits - 1)).to(torch.int8).view(*shape)
