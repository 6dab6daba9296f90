"""Files that somebody else made, or that a disk has damaged."""

from __future__ import annotations

import copy
import os
import random
import subprocess
import sys
import zlib

import pytest
import torch
from torch import nn

import mmrazor_brecq
from mmrazor_brecq.checkpoint import locked, quantized, read_checkpoint
from mmrazor_brecq.checkpoint.format import encode

CONTAINERS = ['.pth', '.safetensors']
#: Where a file names what is built of it.
NAMED = [
    ('quantization', 'weight', 'observer'),
    ('quantization', 'weight', 'rounding'),
    ('quantization', 'activation', 'observer'),
    ('partition',),
    ('partition', 'blocks'),
    ('partition', 'others'),
]
#: A value of every other entry that is read.
OTHERS = [
    ('quantization',),
    ('quantization', 'weight'),
    ('quantization', 'weight', 'bits'),
    ('quantization', 'activation'),
    ('quantization', 'bit_overrides'),
    ('quantization', 'first_last_bits'),
    ('bits',),
    ('unfitted',),
    ('classes',),
    ('identity',),
]


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.Conv2d(4, 4, 1),
        nn.Flatten(),
        nn.Linear(144, 5),
    ).eval()


@pytest.fixture(scope='module')
def model():
    torch.manual_seed(1)
    return mmrazor_brecq.quantize(
        network(),
        torch.randn(8, 3, 8, 8),
        reconstructor=dict(type='NearestRounding'),
    )[0]


def write(model, path, change):
    """Save with another ``meta``, as somebody would who knows the format."""

    def changed(state, widths, meta):
        meta = copy.deepcopy(meta)
        change(meta)
        return encode(state, widths, meta)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantized, 'encode', changed)
        mmrazor_brecq.save(model, path)


def put(meta, keys, value):
    for key in keys[:-1]:
        if not isinstance(meta.get(key), dict):
            meta[key] = dict(type='PatternPartition', patterns=['0'])
        meta = meta[key]
    meta[keys[-1]] = value


@pytest.mark.parametrize('container', CONTAINERS)
@pytest.mark.parametrize('keys', NAMED + OTHERS, ids='.'.join)
@pytest.mark.parametrize(
    'kind', ['subprocess.run', 'os.system', 'builtins.exec', 'mmengine.Runner']
)
def test_what_a_file_names_never_runs(model, tmp_path, container, keys, kind):
    proof = tmp_path / 'proof'
    attack = dict(
        type=kind, args=['touch', str(proof)], command=f'touch {proof}'
    )
    path = str(tmp_path / f'model{container}')
    write(model, path, lambda meta: put(meta, keys, attack))
    before = set(sys.modules)
    try:
        mmrazor_brecq.load(network(), path)
    except ValueError as error:
        assert path in str(error)
    else:
        assert keys[0] in ('classes', 'identity')
    assert not proof.exists()
    assert not {'antigravity', 'this'} & (set(sys.modules) - before)


@pytest.mark.parametrize(
    'attack',
    [
        dict(type='MinMaxObserver', _scope_='mmengine'),
        dict(type='antigravity.fly'),
        dict(type='BRECQ', architecture=dict(type='subprocess.run')),
        dict(type='BlockReconstructor'),
        dict(type=None),
        dict(),
        'LpObserver' * 1000,
        [dict(type='MinMaxObserver')],
        dict(type='LpObserver', steps=10**12),
    ],
)
def test_a_name_is_one_of_the_right_kind(model, tmp_path, attack):
    path = str(tmp_path / 'model.pth')
    keys = 'quantization', 'weight', 'observer'
    write(model, path, lambda meta: put(meta, keys, attack))
    with pytest.raises(ValueError, match='observer'):
        mmrazor_brecq.load(network(), path)


@pytest.mark.parametrize('container', CONTAINERS)
def test_a_file_of_ones_own_loads(model, tmp_path, container):
    path = str(tmp_path / f'model{container}')
    mmrazor_brecq.save(model, path)
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(mmrazor_brecq.load(network(), path)(x), model(x))


@pytest.mark.parametrize('container', CONTAINERS)
def test_no_flipped_bit_is_silent(model, tmp_path, container):
    path = str(tmp_path / f'model{container}')
    mmrazor_brecq.save(model, path)
    whole = bytearray(open(path, 'rb').read())
    state = model.state_dict()
    rng = random.Random(0)
    for _ in range(150):
        content = bytearray(whole)
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        with open(path, 'wb') as file:
            file.write(content)
        try:
            found = mmrazor_brecq.load(network(), path).state_dict()
        except ValueError as error:
            assert path in str(error)
        else:  # Of the container's own names and padding.
            assert all(torch.equal(found[k], v) for k, v in state.items())


@pytest.mark.parametrize('entry', ['format', 'header', 'data', 'checksum'])
def test_a_flip_in_each_entry_is_told(model, tmp_path, entry):
    path = str(tmp_path / 'model.pth')
    mmrazor_brecq.save(model, path)
    content = torch.load(path, weights_only=True)
    content[entry].view(-1).view(torch.uint8)[0] ^= 1
    torch.save(content, path)
    with pytest.raises(ValueError, match='model.pth'):
        mmrazor_brecq.load(network(), path)


def test_a_file_without_checksum_loads_with_a_warning(model, tmp_path, caplog):
    path = str(tmp_path / 'model.pth')
    mmrazor_brecq.save(model, path)
    content = torch.load(path, weights_only=True)
    del content['checksum']
    content['format'] = torch.tensor(1)
    torch.save(content, path)
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(mmrazor_brecq.load(network(), path)(x), model(x))


def test_a_bomb_is_refused_before_it_grows(model, tmp_path):
    path = str(tmp_path / 'model.pth')
    mmrazor_brecq.save(model, path)
    content = torch.load(path, weights_only=True)
    bomb = zlib.compress(bytes(2**28), 9)
    content['header'] = torch.frombuffer(bytearray(bomb), dtype=torch.uint8)
    torch.save(content, path)
    with pytest.raises(ValueError, match='model.pth'):
        read_checkpoint(path)


@pytest.mark.parametrize(
    'name, value',
    [
        ('weight_quantizer.scale', float('nan')),
        ('weight_quantizer.scale', float('inf')),
        ('weight_quantizer.scale', 0.0),
        ('weight_quantizer.scale', -1.0),
        ('weight_quantizer.scale', 1e-42),
        ('input_quantizer.scale', float('inf')),
        ('input_quantizer.scale', 0.0),
        ('input_quantizer.scale', -1.0),
        ('bias', float('nan')),
    ],
)
def test_values_that_no_network_has_are_refused(model, tmp_path, name, value):
    path = str(tmp_path / 'model.pth')
    other = copy.deepcopy(model)
    state = other.state_dict()
    key = next(k for k in state if k.endswith(name))
    state[key].fill_(value)
    mmrazor_brecq.save(other, path)
    with pytest.raises(ValueError, match=key.replace('architecture.', '')):
        mmrazor_brecq.load(network(), path)


def test_integers_outside_their_bits_are_refused(model, tmp_path, monkeypatch):
    path = str(tmp_path / 'model.pth')
    other = copy.deepcopy(model)
    other.architecture[1].stored_weight.data.fill_(127)  # It has four bits.
    monkeypatch.setattr(
        quantized, 'encode', lambda state, bits, meta: encode(state, {}, meta)
    )
    mmrazor_brecq.save(other, path)
    with pytest.raises(ValueError, match='1.weight'):
        mmrazor_brecq.load(network(), path)


def test_the_environment_cannot_make_loading_unsafe(tmp_path, monkeypatch):
    class Code:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / 'proof'),)

    torch.save(dict(state_dict=Code()), tmp_path / 'code.pth')
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
    with pytest.raises(ValueError, match='trust-checkpoint'):
        read_checkpoint(str(tmp_path / 'code.pth'))
    assert not (tmp_path / 'proof').exists()


def test_a_second_run_in_a_folder_is_refused(tmp_path):
    path = tmp_path / 'run.lock'
    code = (
        'import sys\n'
        'from mmrazor_brecq.checkpoint import locked\n'
        'with locked(sys.argv[1], "wait"):\n'
        '    pass\n'
    )

    def other():
        return subprocess.run(
            [sys.executable, '-c', code, str(path)],
            capture_output=True,
            text=True,
        )

    with locked(str(path), 'wait'):
        run = other()
        assert run.returncode
        assert str(os.getpid()) in run.stderr
    assert not path.exists()
    path.write_text('{"pid": 1}')  # Of a process that was killed.
    assert other().returncode == 0
