from __future__ import annotations

import math

import pytest
import torch

from mmrazor_brecq.functional import integer_range, pack_bits, unpack_bits


@pytest.mark.parametrize('bits', range(2, 9))
@pytest.mark.parametrize('shape', [(1,), (7, 3, 5), (4, 2), (0,)])
def test_unpacked_integers_are_the_packed_ones(bits, shape, generator):
    low, high = integer_range(bits, signed=True)
    q = torch.randint(low, high + 1, shape, generator=generator).to(torch.int8)
    packed = pack_bits(q, bits)
    assert packed.dtype == torch.uint8
    assert len(packed) == math.ceil(q.numel() * bits / 8)
    assert torch.equal(unpack_bits(packed, bits, shape), q)


@pytest.mark.parametrize('bits', range(2, 9))
def test_both_ends_of_the_range_can_be_packed(bits):
    q = torch.tensor(integer_range(bits, signed=True), dtype=torch.int8)
    assert torch.equal(unpack_bits(pack_bits(q, bits), bits, (2,)), q)


def test_the_layout_is_as_documented():
    """Integers have an offset of half the range; the first is lowest."""
    q = torch.tensor([-8, 7, 0], dtype=torch.int8)
    assert pack_bits(q, 4).tolist() == [0xF0, 0x08]
    q = torch.tensor([-2, -1, 0, 1], dtype=torch.int8)
    assert pack_bits(q, 2).tolist() == [0b11100100]
