"""Encoded checkpoints are lossless, as small as their bits, and readable."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import mmrazor_brecq
from mmrazor_brecq.checkpoint import (
    decode,
    encode,
    read_checkpoint,
    save_quantized,
)
from mmrazor_brecq.checkpoint.format import checksum
from mmrazor_brecq.report import weight_bytes

DOC = Path(__file__).parents[2] / 'docs/checkpoint.md'


@pytest.fixture
def state():
    return {
        'float': torch.randn(3, 2),
        'double': torch.randn(2).double(),
        'integers': torch.randint(-4, 4, (3, 5, 7)).to(torch.int8),
        'eight': torch.randint(-128, 128, (5,)).to(torch.int8),
        'int16': torch.tensor(-300, dtype=torch.int16),
        'empty': torch.zeros(0),
        'flag': torch.tensor(True),
    }


def test_decoding_returns_the_same_tensors_and_metadata(state):
    content = encode(state, dict(integers=3), dict(a=[1, 'b']))
    found = decode(content)
    assert found['meta'] == dict(a=[1, 'b'])
    assert list(found['state_dict']) == list(state)
    for name, value in state.items():
        other = found['state_dict'][name]
        assert other.dtype == value.dtype and torch.equal(other, value)


def test_a_later_format_is_refused(state):
    content = encode(state, {}, {})
    content['format'] += 1
    with pytest.raises(ValueError, match='update mmrazor_brecq'):
        decode(content)


def test_data_of_another_size_is_refused(state):
    content = encode(state, {}, {})
    content['data'] = torch.cat([content['data'], content['data'][:1]])
    with pytest.raises(ValueError, match='checksum'):
        decode(content)
    content['checksum'] = checksum(content)
    with pytest.raises(ValueError, match='bytes, expected'):
        decode(content)


@pytest.mark.parametrize('ending', ['pth', 'safetensors'])
@pytest.mark.parametrize('bits', [(2, 4), (3, 8), (8, 8), (4, None)])
def test_a_loaded_network_equals_the_saved_one(
    quantized, toy, images, tmp_path, bits, ending
):
    model = quantized('residual', *bits)
    path = str(tmp_path / f'quantized.{ending}')
    mmrazor_brecq.save(model, path)
    other = mmrazor_brecq.load(toy('residual', seed=1), path)
    assert torch.equal(other(images), model(images))
    for name, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)


@pytest.mark.parametrize('ending', ['pth', 'safetensors'])
@pytest.mark.parametrize('bits', [2, 3, 4, 8])
def test_a_file_is_as_small_as_its_bits(quantized, tmp_path, bits, ending):
    """On a network of usual size, a file is at most 5 % larger."""
    from mmrazor_brecq.algorithms import BRECQ

    network = torch.nn.Sequential(
        *[torch.nn.Conv2d(96, 96, 3, padding=1) for _ in range(6)]
    )
    model = BRECQ(
        network,
        dict(weight=dict(bits=bits), first_last_bits=None),
        reconstructor=dict(type='NearestRounding', batch_size=2),
    ).eval()
    images = torch.randn(4, 96, 4, 4)
    list(model.reconstruct(model.prepare(images[:1]), list(images.split(2))))
    path = tmp_path / f'quantized.{ending}'
    save_quantized(model, {}, str(path))
    expected = weight_bytes(model)['quantized']
    assert expected < path.stat().st_size <= 1.05 * expected


def test_the_reader_in_the_documentation_works(
    quantized, tmp_path, monkeypatch
):
    """The ten lines of plain torch are taken from the page and run."""
    model = quantized('residual', 3, 4)
    monkeypatch.chdir(tmp_path)
    mmrazor_brecq.save(model, 'quantized.pth')
    code = re.search(r'```python\n(.*?)```', DOC.read_text(), re.S).group(1)
    statements = [line for line in code.splitlines() if line.strip()]
    body = [line for line in statements if not line.startswith('import')]
    assert len(body) <= 10 and 'mmrazor_brecq' not in code
    names = {}
    exec(code, names)
    assert names['state'].keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(names['state'][name], value), name


def test_an_unpacked_file_of_an_early_version_loads(
    quantized, toy, images, tmp_path
):
    model = quantized('residual', 4, 4)
    path = str(tmp_path / 'quantized.pth')
    meta = dict(quantization=model.scheme.to_dict())
    torch.save(dict(state_dict=model.state_dict(), meta=meta), path)
    other = mmrazor_brecq.load(toy('residual', seed=1), path)
    assert torch.equal(other(images), model(images))


def test_a_float_checkpoint_is_refused(toy, tmp_path):
    path = str(tmp_path / 'float.pth')
    torch.save(toy('residual').state_dict(), path)
    with pytest.raises(ValueError, match='float checkpoint.*tools/ptq.py'):
        mmrazor_brecq.load(toy('residual'), path)


def test_a_checkpoint_of_another_network_is_refused(quantized, toy, tmp_path):
    path = str(tmp_path / 'quantized.pth')
    mmrazor_brecq.save(quantized('residual'), path)
    with pytest.raises(ValueError, match='does not belong'):
        mmrazor_brecq.load(toy('inverted'), path)


def test_a_missing_safetensors_package_is_named(
    quantized, tmp_path, monkeypatch
):
    monkeypatch.setitem(__import__('sys').modules, 'safetensors', None)
    monkeypatch.setitem(__import__('sys').modules, 'safetensors.torch', None)
    path = str(tmp_path / 'quantized.safetensors')
    with pytest.raises(ImportError, match=r'mmrazor_brecq\[export\]'):
        mmrazor_brecq.save(quantized('residual'), path)


def test_a_cut_file_of_safetensors_is_refused(quantized, tmp_path):
    path = tmp_path / 'quantized.safetensors'
    mmrazor_brecq.save(quantized('residual'), str(path))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match='no whole checkpoint'):
        read_checkpoint(str(path))
