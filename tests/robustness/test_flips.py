"""Damage is noticed: a flip in any field of a file, or of a run."""

from __future__ import annotations

import hashlib
import json
import random

import pytest
import torch
from torch import nn

import mmrazor_brecq
from mmrazor_brecq.algorithms import BRECQ
from mmrazor_brecq.checkpoint import checksum_of, decode, encode
from mmrazor_brecq.engine.progress import Progress
from mmrazor_brecq.engine.sensitivity_run import SensitivityFile
from mmrazor_brecq.mixed_precision import LatencyTable
from mmrazor_brecq.mixed_precision.choices import Choice
from mmrazor_brecq.mixed_precision.pairwise import Pairwise
from mmrazor_brecq.reconstruction import UnitReport


def network():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1))


@pytest.fixture(scope='module')
def model():
    torch.manual_seed(0)
    built = BRECQ(
        network(),
        dict(weight=dict(bits=3), activation=dict(bits=4)),
        reconstructor=dict(type='NearestRounding', batch_size=2),
    ).eval()
    images = torch.rand(4, 3, 6, 6)
    list(built.reconstruct(built.prepare(images[:1]), [images]))
    return built


@pytest.fixture(params=['pth', 'safetensors'])
def path(request, model, tmp_path):
    path = tmp_path / f'quantized.{request.param}'
    mmrazor_brecq.save(model, str(path))
    return path


def flip(path, place, bit):
    data = bytearray(path.read_bytes())
    data[place] ^= 1 << bit
    path.write_bytes(data)


def loads_otherwise(path, model):
    """Whether a file loads, and is another network."""
    try:
        found = mmrazor_brecq.load(network(), str(path)).state_dict()
    except ValueError as error:
        assert path.name in str(error)
        return False
    own = model.state_dict()
    return own.keys() != found.keys() or any(
        not torch.equal(own[key], found[key]) for key in own
    )


def test_no_flip_is_silent(path, model):
    """300 bits at random, of all that the file has."""
    whole, chance = path.read_bytes(), random.Random(0)
    for _ in range(300):
        flip(path, chance.randrange(len(whole)), chance.randrange(8))
        assert not loads_otherwise(path, model)
        path.write_bytes(whole)


@pytest.mark.parametrize('key', ['format', 'header', 'data', 'checksum'])
@pytest.mark.parametrize('where', ['first', 'middle', 'last'])
def test_a_flip_in_each_field_is_told(model, key, where):
    content = encode(model.state_dict(), {}, {})
    flat = content[key].view(-1)
    place = dict(first=0, middle=len(flat) // 2, last=-1)[where]
    flat[place] ^= 4
    with pytest.raises(ValueError, match='checksum|format'):
        decode(content)


def test_every_length_but_the_whole_is_told(path, model):
    whole = path.read_bytes()
    for left in range(0, len(whole), 97):
        path.write_bytes(whole[:left])
        with pytest.raises(ValueError, match=path.name):
            mmrazor_brecq.load(network(), str(path))


def test_a_file_without_a_checksum_loads_with_a_warning(
    model, tmp_path, warnings_log
):
    path = str(tmp_path / 'old.pth')
    mmrazor_brecq.save(model, path)
    content = torch.load(path, weights_only=True)
    del content['checksum']
    with pytest.raises(ValueError, match='checksum'):
        decode(content)
    content['format'].fill_(1)
    torch.save(content, path)
    found = mmrazor_brecq.load(network(), path).state_dict()
    assert all(torch.equal(v, found[k]) for k, v in model.state_dict().items())
    assert [x for x in warnings_log if 'old.pth' in x and 'no checksum' in x]


@pytest.fixture
def run(tmp_path):
    """A run of three units, and what gives their modules."""
    modules = {name: nn.Linear(2, 2) for name in 'abc'}
    progress = Progress(str(tmp_path / 'progress'), dict(x='y'), False)
    progress.add_metrics('float', dict(top1=1.0))
    for name, module in modules.items():
        progress.add_unit(UnitReport(name, [name]), module)
    return tmp_path / 'progress', modules


def resumed(run):
    folder, modules = run
    progress = Progress(str(folder), dict(x='y'), True)
    found = progress.units(modules.__getitem__)
    for name, state in found.items():
        own = modules[name].state_dict()
        assert all(torch.equal(own[key], state[key]) for key in own)
    return list(found), [report.name for report in progress.reports]


def test_no_flip_in_a_unit_is_used(run, warnings_log):
    file = run[0] / '0001.pth'
    whole, chance = file.read_bytes(), random.Random(0)
    for _ in range(100):
        flip(file, chance.randrange(len(whole)), chance.randrange(8))
        assert resumed(run) == (['a'], ['a'])
        assert '0001.pth is damaged' in warnings_log[-1]
        file.write_bytes(whole)
    assert resumed(run) == (['a', 'b', 'c'],) * 2


def test_a_unit_that_is_gone_is_done_anew(run, warnings_log):
    (run[0] / '0000.pth').unlink()
    assert resumed(run) == ([], [])
    assert '0000.pth cannot be read' in warnings_log[-1]
    assert "the unit 'a' and the 2 after it" in warnings_log[-1]


def test_no_flip_in_a_run_is_used(run):
    file = run[0] / 'run.json'
    whole = file.read_bytes()
    before = json.loads(whole)
    for place in range(len(whole)):
        flip(file, place, place % 7)
        try:
            # Spaces between the entries are of no account.
            resumed(run)
            assert json.loads(file.read_bytes()) == before
        except ValueError as error:
            assert 'run.json is broken' in str(error)
        file.write_bytes(whole)


def test_a_run_of_before_has_no_hashes(run, warnings_log):
    file = run[0] / 'run.json'
    content = json.loads(file.read_text())
    del content['hashes'], content['checksum']
    file.write_text(json.dumps(content))
    assert resumed(run) == (['a', 'b', 'c'],) * 2
    assert 'no checksums' in warnings_log[0]
    progress = Progress(str(run[0]), dict(x='y'), True)
    progress.add_unit(UnitReport('d', ['d']), nn.Linear(1, 1))
    content = json.loads(file.read_text())
    for i, digest in enumerate(content['hashes']):
        data = (run[0] / f'{i:04d}.pth').read_bytes()
        assert hashlib.sha256(data).hexdigest() == digest
    assert len(content['hashes']) == 4


CHOICES = [
    Choice('weight', 'u', ('u.a',)),
    Choice('weight', 'u', ('u.b',)),
    Choice('weight', 'v', ('v',)),
]


def sensitivity(path):
    file = SensitivityFile(str(path), dict(x='y'))
    file.check(CHOICES, (2, 4))
    return file


@pytest.fixture
def measured(tmp_path):
    path = tmp_path / 'sensitivity.json'
    loss = Pairwise()
    for name in ('u.a.weight', 'u.b.weight'):
        for bits in (2, 4):
            loss.add(name, bits, 1 / bits)
    for a in (2, 4):
        for b in (2, 4):
            loss.add_pair(('u.a.weight', 'u.b.weight'), (a, b), 0.1 - a * b)
    sensitivity(path).add('u', loss)
    assert sensitivity(path).loss == loss
    return path


def rewrite(path, change):
    content = json.loads(path.read_text())
    del content['checksum']
    change(content)
    content['checksum'] = checksum_of(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    'change',
    [
        lambda c: c['alone']['u.a.weight'].update({'2': float('nan')}),
        lambda c: c['alone']['u.a.weight'].update({'2': float('inf')}),
        lambda c: c['alone']['u.a.weight'].update({'2': -1}),
        lambda c: c['alone']['u.a.weight'].update({'2': '1'}),
        lambda c: c['alone']['u.a.weight'].update({'2': None}),
        lambda c: c['alone']['u.a.weight'].update({'2': True}),
        lambda c: c['alone']['u.a.weight'].update({'99': 1}),
        lambda c: c['alone']['u.a.weight'].update({'3': 1}),
        lambda c: c['alone']['u.a.weight'].update({'x': 1}),
        lambda c: c['alone']['u.a.weight'].pop('2'),
        lambda c: c['alone'].pop('u.b.weight'),
        lambda c: c['alone'].update(other={'2': 1, '4': 1}),
        lambda c: c.update(alone=[1]),
        lambda c: c['pairs'].append(c['pairs'][0]),
        lambda c: c['pairs'].append([*c['pairs'][0][:4], float('nan')]),
        lambda c: c['pairs'].append([1, 2]),
        lambda c: c['pairs'].append(
            ['u.b.weight', 2, 'u.a.weight', 2, 0.5]
        ),
        lambda c: c['pairs'].pop(),
        lambda c: c['pairs'].clear(),
        lambda c: c['pairs'][0].__setitem__(1, 99),
        lambda c: c['pairs'][0].__setitem__(1, 2.0),
        lambda c: c['pairs'][0].__setitem__(4, float('inf')),
        lambda c: c['pairs'][0].__setitem__(0, 'other'),
        lambda c: c['finished'].append('v'),
        lambda c: c['finished'].append('u'),
        lambda c: c['finished'].append('other'),
        lambda c: c.update(finished=[]),
        lambda c: c.update(finished='u'),
        lambda c: c.update(finished=[1]),
        lambda c: c.update(identity=[1]),
        lambda c: c.pop('pairs'),
    ],
)  # fmt: skip
def test_sensitivities_are_numbers_of_what_is_measured(measured, change):
    rewrite(measured, change)
    with pytest.raises(ValueError, match=r'sensitivity.json.*--sensitivity'):
        sensitivity(measured)


@pytest.mark.parametrize('text', ['', '[]', '{}', 'null', '[' * 99999, '{"a'])
def test_a_file_of_sensitivities_that_is_none(measured, text):
    measured.write_text(text)
    with pytest.raises(ValueError, match=r'no file of sensitivities'):
        sensitivity(measured)


def test_no_flip_in_sensitivities_is_used(measured):
    whole = measured.read_bytes()
    before = sensitivity(measured).loss
    for place in range(len(whole)):
        flip(measured, place, place % 7)
        try:
            assert sensitivity(measured).loss == before
        except ValueError as error:
            assert 'sensitivity.json' in str(error)
        measured.write_bytes(whole)


GOOD = dict(shape='conv', weight_bits=4, activation_bits=32, latency_ms=0.5)


@pytest.mark.parametrize('ending', ['json', 'csv'])
@pytest.mark.parametrize(
    'row, word',
    [
        (dict(latency_ms='nan'), 'nan'),
        (dict(latency_ms='inf'), 'inf'),
        (dict(latency_ms='-1'), '-1'),
        (dict(latency_ms='fast'), 'fast'),
        (dict(weight_bits='99'), '99'),
        (dict(weight_bits='1'), "'1'"),
        (dict(activation_bits='0'), "'0'"),
        (dict(activation_bits='4.5'), '4.5'),
        (dict(weight_bits='-4'), '-4'),
        (dict(shape=''), 'shape'),
        (dict(), 'two rows'),
    ],
)
def test_a_latency_table_holds_times(tmp_path, row, word, ending):
    path = tmp_path / f'table.{ending}'
    rows = [GOOD, dict(GOOD, **row)]
    if ending == 'json':
        path.write_text(json.dumps(dict(rows=rows)))
    else:
        lines = [
            ','.join(GOOD),
            *(','.join(map(str, r.values())) for r in rows),
        ]
        path.write_text('\n'.join(lines))
    with pytest.raises(ValueError, match=r'no latency table') as caught:
        LatencyTable(str(path))
    assert word in str(caught.value)


@pytest.mark.parametrize(
    'text',
    ['', '{}', '3', '{"rows": 3}', '{"rows": [3]}', '[[]]', '[' * 99999],
)
def test_a_latency_table_that_is_none(tmp_path, text):
    path = tmp_path / 'table.json'
    path.write_text(text)
    with pytest.raises(ValueError, match='no latency table'):
        LatencyTable(str(path))


def test_a_binary_latency_table(tmp_path):
    path = tmp_path / 'table.csv'
    path.write_bytes(bytes(range(256)))
    with pytest.raises(ValueError, match='no latency table'):
        LatencyTable(str(path))
