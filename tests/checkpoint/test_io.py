from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import nn

from mmrazor_brecq.algorithms import BRECQ
from mmrazor_brecq.checkpoint import (
    fingerprint,
    load_float,
    load_quantized,
    read_checkpoint,
)


def network():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)
    )


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / 'model.pth')


class Code:
    """Something that only loads by running code."""


def test_loads_a_plain_state_dict(path):
    trained, model = network(), BRECQ(network())
    torch.save(trained.state_dict(), path)
    load_float(model, path)
    assert fingerprint(model.architecture) == fingerprint(trained)


@pytest.mark.parametrize('key', ['state_dict', 'model'])
def test_loads_what_frameworks_wrap(path, key):
    trained, model = network(), BRECQ(network())
    state = {f'module.{k}': v for k, v in trained.state_dict().items()}
    torch.save({key: OrderedDict(state), 'epoch': 3}, path)
    load_float(model, path)
    assert fingerprint(model.architecture) == fingerprint(trained)


def test_missing_file(path):
    with pytest.raises(FileNotFoundError, match='No checkpoint at'):
        read_checkpoint(path)


@pytest.mark.parametrize('left', [0, 10, 1000])
def test_truncated_file(path, left):
    torch.save(network().state_dict(), path)
    with open(path, 'rb') as file:
        content = file.read()[:left]
    with open(path, 'wb') as file:
        file.write(content)
    with pytest.raises(ValueError, match='no whole checkpoint'):
        read_checkpoint(path)


@pytest.mark.parametrize('text', ['<html>not found</html>', 'epoch: 3'])
def test_a_file_of_something_else(path, text):
    with open(path, 'w') as file:
        file.write(text)
    with pytest.raises(ValueError, match='no whole checkpoint'):
        read_checkpoint(path)


def test_no_state_dict(path):
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match='holds no state_dict'):
        read_checkpoint(path)


def test_unsafe_only_with_an_explicit_word(path):
    torch.save(dict(state_dict=network().state_dict(), hook=Code()), path)
    with pytest.raises(ValueError, match='--trust-checkpoint'):
        read_checkpoint(path)
    assert 'state_dict' in read_checkpoint(path, trust=True)


def test_foreign_checkpoint_counts_and_names(path):
    torch.save({f'other.{i}': torch.zeros(1) for i in range(5)}, path)
    with pytest.raises(ValueError) as info:
        load_float(BRECQ(network()), path)
    message = str(info.value)
    assert '0 of 9 tensors of Sequential match' in message
    assert '8 missing (0.weight, 0.bias, 1.weight, ...)' in message
    assert '5 unexpected (other.0, other.1, other.2, ...)' in message


def test_wrong_shape_is_refused(path):
    state = network().state_dict()
    state['2.weight'] = torch.zeros(7, 4, 1, 1)
    torch.save(state, path)
    with pytest.raises(ValueError, match=r'2.weight \(7, 4, 1, 1\) for'):
        load_float(BRECQ(network()), path)


def test_unexpected_alone_is_no_reason_to_refuse(path):
    trained, model = network(), BRECQ(network())
    torch.save(dict(trained.state_dict(), ema=torch.zeros(2)), path)
    load_float(model, path)
    assert fingerprint(model.architecture) == fingerprint(trained)


@pytest.fixture
def quantized(path):
    model = BRECQ(
        network(), reconstructor=dict(type='NearestRounding', batch_size=2)
    ).eval()
    images = torch.rand(4, 3, 6, 6)
    teacher = model.prepare(images[:1])
    list(model.reconstruct(teacher, [images]))
    torch.save(dict(state_dict=model.state_dict(), meta=dict(a=1)), path)
    return model


def test_quantized_round_trip(quantized, path):
    fresh = BRECQ(network()).eval()
    assert load_quantized(fresh, path) == dict(a=1)
    images = torch.rand(2, 3, 6, 6)
    assert torch.equal(fresh(images), quantized(images))


def test_float_given_as_quantized(path):
    torch.save(network().state_dict(), path)
    with pytest.raises(ValueError, match='tools/ptq.py'):
        load_quantized(BRECQ(network()), path)


def test_quantized_given_as_float(quantized, path):
    with pytest.raises(ValueError, match='tools/test.py'):
        load_float(BRECQ(network()), path)


def test_quantized_of_another_config(quantized, path):
    other = BRECQ(
        network(),
        quantization=dict(weight=dict(bits=4), first_last_bits=None),
    )
    with pytest.raises(ValueError, match='config'):
        load_quantized(other, path)
    other = BRECQ(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)))
    with pytest.raises(ValueError, match='does not belong to this config'):
        load_quantized(other, path)
