from __future__ import annotations

import math
from collections import OrderedDict

import pytest
import torch

from mmrazor_brecq.functional import pack_extra, unpack_extra

VALUES = [
    None,
    True,
    3,
    -0.1,
    math.inf,
    'text',
    b'\x00\xff',
    [1, [2, 'a']],
    (1, (2,)),
    {'a': {1: 2, (3, 4): None}},
    {1, 2},
    torch.Size([2, 3]),
    torch.float16,
    torch.arange(6).view(2, 3),
    torch.tensor(2.5, dtype=torch.bfloat16),
    torch.tensor([True, False]),
    torch.empty(0, 3),
    {'bytes': 'not base64', 'tensor': [1]},
]


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    return type(a) is type(b) and a == b


@pytest.mark.parametrize('value', VALUES, ids=str)
def test_a_plain_value_is_restored(value):
    state = {'a.weight': torch.ones(2), 'a._extra_state': value}
    packed = pack_extra(state)
    assert all(isinstance(x, torch.Tensor) for x in packed.values())
    assert packed['a.weight'] is state['a.weight']
    assert equal(unpack_extra(packed)['a._extra_state'], value)


def test_tensors_in_containers_are_restored():
    value = OrderedDict(a=[torch.ones(2), (torch.zeros(1, 3), b'x')])
    found = unpack_extra(pack_extra({'_extra_state': value}))['_extra_state']
    assert torch.equal(found['a'][0], torch.ones(2))
    assert found['a'][1][0].shape == (1, 3) and found['a'][1][1] == b'x'


class Code:
    """An object that only code can restore."""


@pytest.mark.parametrize('value', [Code(), [Code()], {'a': {'b': Code}}, len])
def test_a_value_that_is_not_plain_is_refused_with_its_key(value):
    with pytest.raises(ValueError, match="'a.b._extra_state'.*get_extra"):
        pack_extra({'a.b._extra_state': value})


def test_a_value_that_contains_itself_is_refused():
    value = []
    value.append(value)
    with pytest.raises(ValueError, match='_extra_state'):
        pack_extra({'_extra_state': value})


def test_a_tensor_of_an_older_file_is_returned_unchanged():
    for value in torch.ones(2), torch.arange(3, dtype=torch.uint8):
        found = unpack_extra({'_extra_state': value})['_extra_state']
        assert found is value


@pytest.mark.parametrize(
    'damage', [b'{', b'{"os": ["x"]}', b'{"dtype": "load"}']
)
def test_damaged_values_are_refused_with_their_key(damage):
    packed = bytes(pack_extra({'_extra_state': None})['_extra_state'].tolist())
    text = packed.replace(b'null', damage)
    broken = torch.tensor(list(text), dtype=torch.uint8)
    with pytest.raises(ValueError, match="'_extra_state' is damaged"):
        unpack_extra({'_extra_state': broken})
