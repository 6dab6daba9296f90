"""Files from strangers: nothing in them runs, whatever they name."""

from __future__ import annotations

import ast
import copy
import hashlib
import json
import pickle
import sys
import zipfile
import zlib
from functools import partial
from pathlib import Path

import pytest
import torch

import mmrazor_brecq
from mmrazor_brecq.algorithms import BRECQ
from mmrazor_brecq.checkpoint import (
    checksum_of,
    decode,
    encode,
    load_float,
    load_quantized,
    load_tensors,
    read_checkpoint,
)
from mmrazor_brecq.checkpoint.format import MAX_HEADER_BYTES, checksum
from mmrazor_brecq.engine.deploy import Request, export
from mmrazor_brecq.engine.launch import build_model, ptq
from mmrazor_brecq.engine.launch import test as evaluate
from mmrazor_brecq.engine.progress import Progress
from mmrazor_brecq.graph import BlockPartition
from mmrazor_brecq.registry import TASK_UTILS

from ..engine import conftest as demo_runs

demo = demo_runs.demo

ENDINGS = pytest.mark.parametrize('ending', ['pth', 'safetensors'])

#: What a file may not name; `{trap}` is a module that tells of its import.
NAMES = [
    '{trap}.Part',
    '{trap}.call',
    'os.system',
    'subprocess.run',
    'mmengine.Runner',
    'mmrazor_brecq.{trap}.Part',
    'mmrazor_brecq.graph.partition.BlockPartition',
    'mmrazor_brecq.engine.launch.ptq',
    'mmengine.LpObserver',
    'LatencyTable',
    'BlockReconstructor',
    '',
    '.',
]
#: Where meta has a name that something would be built of.
PLACES = [
    ('partition', 'type'),
    ('partition', 'blocks', 'type'),
    ('partition', 'blocks'),
    ('partition', 'others', 'type'),
    ('partition',),
    ('quantization', 'weight', 'type'),
    ('quantization', 'weight', 'observer', 'type'),
    ('quantization', 'weight', 'observer'),
    ('quantization', 'weight', 'rounding', 'type'),
    ('quantization', 'weight', 'rounding'),
    ('quantization', 'activation', 'type'),
    ('quantization', 'activation', 'observer', 'type'),
    ('quantization', 'activation', 'observer'),
]


@pytest.fixture
def trap(tmp_path, monkeypatch):
    """A module on the path whose import or call leaves a file."""
    mark = tmp_path / 'sprung'
    (tmp_path / 'brecq_trap.py').write_text(
        f'open({str(mark)!r}, "w").close()\n'
        'class Part:\n    pass\n'
        'def call(**kwargs):\n    pass\n'
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield 'brecq_trap'
    assert not mark.exists() and 'brecq_trap' not in sys.modules


@pytest.fixture(scope='module')
def good():
    """Content of a file of a toy network, decoded."""
    torch.manual_seed(0)
    model = BRECQ(
        torch.nn.Sequential(
            torch.nn.Conv2d(3, 4, 3), torch.nn.Conv2d(4, 2, 1)
        ),
        dict(weight=dict(bits=4), activation=dict(bits=4)),
        reconstructor=dict(type='NearestRounding', batch_size=2),
    ).eval()
    images = torch.rand(4, 3, 6, 6)
    list(model.reconstruct(model.prepare(images[:1]), [images]))
    meta = dict(
        bits={name: list(bits) for name, bits in model.bits.items()},
        quantization=model.scheme.to_dict(),
        partition=model.partition_cfg,
        unfitted=[],
    )
    return dict(state_dict=model.state_dict(), meta=meta)


def network():
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.Conv2d(4, 2, 1)
    )


@pytest.fixture
def write(good, tmp_path):
    """Writes a file whose meta or state has been changed."""

    def write(change, ending='pth'):
        content = copy.deepcopy(good)
        change(content['meta'], content['state_dict'])
        path = tmp_path / f'evil.{ending}'
        encoded = encode(content['state_dict'], {}, content['meta'])
        if ending == 'pth':
            torch.save(encoded, path)
        else:
            from safetensors.torch import save_file

            save_file(encoded, path)
        return str(path)

    return write


def put(meta, place, value):
    """Set an entry, with a dict for what there is to be on the way to it."""
    types = dict(
        partition='StagePartition',
        blocks='BlockPartition',
        others='BlockPartition',
        observer='LpObserver',
        rounding='AdaRound',
    )
    for key in place[:-1]:
        inside = meta.get(key)
        if not isinstance(inside, dict):
            inside = dict(type=types[key])
        if key == 'partition' and 'others' in place:
            inside = dict(type='PatternPartition', patterns=['0'])
        if key == 'partition' and 'blocks' in place:
            inside = dict(type='StagePartition')
        meta[key] = meta = inside
    meta[place[-1]] = value


def put_in(place, value, meta, state):
    """The same as a change of a file."""
    put(meta, place, value)


@ENDINGS
@pytest.mark.parametrize('place', PLACES, ids='.'.join)
def test_nothing_that_meta_names_is_looked_up(trap, write, place, ending):
    for name in NAMES:
        name = name.format(trap=trap)
        path = write(partial(put_in, place, name), ending)
        with pytest.raises(ValueError, match=r'evil\..*meta\..*registered'):
            mmrazor_brecq.load(network(), path)
        with pytest.raises(ValueError, match=r'evil\.'):
            load_quantized(BRECQ(network()), path)


@ENDINGS
def test_the_file_that_is_attacked_is_a_good_one(write, ending):
    path = write(lambda meta, state: None, ending)
    assert mmrazor_brecq.load(network(), path).bits
    for place in PLACES:
        if place[-1] == 'type' and 'partition' not in place:
            kind = {
                'weight': 'WeightQuantizer',
                'activation': 'ActivationQuantizer',
                'observer': 'MinMaxObserver',
                'rounding': 'AdaRound',
            }[place[-2]]
            for name in (kind, f'mmrazor_brecq.{kind}'):
                path = write(partial(put_in, place, name))
                assert mmrazor_brecq.load(network(), path).bits


@pytest.mark.parametrize('scope', ['_scope_', '_delete_', '__class__'])
def test_no_scope_is_switched_to(trap, write, scope):
    for place in (
        ('partition', scope),
        ('quantization', 'weight', scope),
        ('quantization', 'weight', 'observer', scope),
    ):
        path = write(partial(put_in, place, trap))
        with pytest.raises(ValueError, match='no argument'):
            mmrazor_brecq.load(network(), path)


@pytest.mark.parametrize(
    'place, value',
    [
        (('partition', 'backbone'), ['{trap}']),
        (('partition', 'backbone'), dict(type='{trap}.Part')),
        (('partition', 'backbone'), [[dict(type='{trap}.Part')]]),
        (('partition', 'bomb'), 1),
        (('partition',), 5),
        (('partition',), [1]),
        (('quantization', 'weight', 'observer', 'p'), dict(type='os.system')),
        (('quantization', 'weight', 'observer', 'p'), 'x'),
        (('quantization', 'weight', 'observer'), [1]),
        (('quantization', 'weight', 'out_channels'), 9),
        (('quantization', 'weight', 'bits'), 99),
        (('quantization', 'weight', 'symmetric'), 'no'),
        (('quantization', 'weight', 'spare'), 1),
        (('quantization', 'weight'), None),
        (('quantization', 'activation', 'drop_prob'), 7.0),
        (('quantization', 'activation', 'bits'), 0),
        (('quantization', 'first_last_bits'), -1),
        (('quantization', 'bit_overrides'), {'0': 1000}),
        (('quantization', 'bit_overrides'), {'0': dict(type='os.system')}),
        (('quantization', 'bit_overrides'), {'none': 4}),
        (('quantization', 'spare'), 1),
        (('quantization',), None),
        (('quantization',), []),
        (('quantization',), 'x'),
        (('classes',), 'abc'),
        (('classes',), [dict(a=1)]),
        (('classes',), ['x' * 10**6]),
        (('identity',), ['x']),
        (('identity',), dict(config=3)),
        (('bits',), dict(a=3)),
        (('bits',), {'0': [4, 99]}),
        (('unfitted',), 'x'),
        (('mmrazor_brecq',), 3),
        (('note',), 10**30),
        (('note',), [[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]),
    ],
)
def test_an_entry_of_another_form_is_refused_by_name(
    trap, write, place, value
):
    value = json.loads(json.dumps(value).replace('{trap}', trap))
    path = write(lambda meta, state: put(meta, place, value))
    with pytest.raises(ValueError, match=r'evil\.pth.*') as caught:
        mmrazor_brecq.load(network(), path)
    assert len(str(caught.value)) < 1000


def test_parts_of_ones_own_are_found_once_they_are_registered(write):
    path = write(lambda meta, state: put(meta, ('partition',), 'OwnCut'))
    with pytest.raises(ValueError, match="'OwnCut' is no registered.*import"):
        mmrazor_brecq.load(network(), path)

    @TASK_UTILS.register_module()
    class OwnCut(BlockPartition):
        pass

    @TASK_UTILS.register_module()
    class OwnGrid:
        """Of no base of ours."""

        def __call__(self, values, grid):
            return grid.fit(values.amin(1), values.amax(1))

    try:
        model = mmrazor_brecq.load(network(), path)
        assert type(model.partition) is OwnCut
        observer = dict(type='mmrazor_brecq.OwnGrid')
        path = write(
            lambda meta, state: put(
                meta, ('quantization', 'weight', 'observer'), observer
            )
        )
        assert mmrazor_brecq.load(network(), path).bits
    finally:
        for name in ('OwnCut', 'OwnGrid'):
            TASK_UTILS.module_dict.pop(name, None)


class Runs:
    """Unpickled, it leaves a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, 'w')


@pytest.mark.parametrize(
    'variable', ['TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', None]
)
@pytest.mark.parametrize('legacy', [False, True])
def test_nothing_unpickled_runs_whatever_the_environment_says(
    tmp_path, monkeypatch, variable, legacy
):
    if variable:
        monkeypatch.setenv(variable, '1')
    mark, path = tmp_path / 'ran', str(tmp_path / 'evil.pth')
    content = dict(state_dict={'0.weight': torch.ones(1)}, x=Runs(str(mark)))
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    for read in (
        lambda: mmrazor_brecq.load(network(), path),
        lambda: load_quantized(BRECQ(network()), path),
        lambda: load_float(BRECQ(network()), path),
    ):
        with pytest.raises(ValueError, match='run any code'):
            read()
    with pytest.raises(pickle.UnpicklingError):
        load_tensors(path)
    assert not mark.exists()


def progress_of(folder, **changes):
    """A run of one unit, honestly hashed, with changed entries."""
    folder.mkdir()
    conv = torch.nn.Conv2d(3, 4, 3)
    torch.save(conv.state_dict(), folder / '0000.pth')
    if 'file' in changes:
        torch.save(changes.pop('file'), folder / '0000.pth')
    data = (folder / '0000.pth').read_bytes()
    unit = dict(
        name='0',
        layers=['0'],
        bits={'0': [4, 4]},
        before=1.0,
        after=0.5,
        accepted=True,
    )
    content = dict(
        identity=dict(a='b'),
        metrics={},
        units=[dict(unit, **changes.pop('unit', {}))],
        hashes=[hashlib.sha256(data).hexdigest()],
    )
    content.update(changes)
    content['checksum'] = checksum_of(content)
    (folder / 'run.json').write_text(json.dumps(content))
    return str(folder)


def test_a_unit_runs_nothing_with_a_right_hash(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
    mark = tmp_path / 'ran'
    folder = progress_of(tmp_path / 'progress', file=Runs(str(mark)))
    progress = Progress(folder, dict(a='b'), True)
    with pytest.raises(ValueError, match='0000.pth.*: remove .*progress'):
        progress.units(dict({'0': torch.nn.Conv2d(3, 4, 3)}).__getitem__)
    assert not mark.exists()


@pytest.mark.parametrize(
    'file',
    [
        {'weight': torch.ones(1), 'bias': torch.ones(4)},
        {'weight': torch.ones(4, 3, 3, 3)},
        {'weight': torch.ones(4, 3, 3, 3), 'bias': 'x'},
        {
            'weight': torch.ones(1).expand(4, 3, 3, 3),
            'bias': torch.ones(4),
        },
        [1, 2],
        'x',
    ],
)
def test_a_unit_of_another_form_is_refused_by_name(tmp_path, file):
    folder = progress_of(tmp_path / 'progress', file=file)
    with pytest.raises(ValueError, match='0000.pth'):
        Progress(folder, dict(a='b'), True).units(
            dict({'0': torch.nn.Conv2d(3, 4, 3)}).__getitem__
        )


@pytest.mark.parametrize(
    'changes',
    [
        dict(unit=dict(__class__='x')),
        dict(unit=dict(spare=1)),
        dict(unit=dict(autocast='load')),
        dict(unit=dict(name=5)),
        dict(unit=dict(before='x')),
        dict(units=5),
        dict(units=['x']),
        dict(units=[dict(name='0'), dict(name='0')]),
        dict(metrics=[1]),
        dict(metrics=dict(float=dict(a='x'))),
        dict(identity=[1]),
        dict(spare=1),
    ],
    ids=str,
)
def test_a_run_of_another_form_is_refused_by_name(tmp_path, changes):
    folder = progress_of(tmp_path / 'progress', **changes)
    with pytest.raises(ValueError, match='run.json is broken'):
        Progress(folder, dict(a='b'), True)


@pytest.mark.parametrize(
    'text', ['{}', '[]', 'null', '3', '', '{"a"', '[' * 9999]
)
def test_a_run_that_is_none_is_refused_by_name(tmp_path, text):
    (tmp_path / 'run.json').write_text(text)
    with pytest.raises(ValueError, match='run.json is broken'):
        Progress(str(tmp_path), dict(a='b'), True)


def signed(content):
    return dict(content, checksum=checksum(content))


def header_of(**changes):
    header = dict(meta={}, tensors={'x': ['float32', [2], 32]})
    header.update(changes)
    text = json.dumps(header).encode()
    packed = torch.frombuffer(
        bytearray(zlib.compress(text)), dtype=torch.uint8
    )
    return signed(
        dict(
            format=torch.tensor(2),
            header=packed,
            data=torch.zeros(8, dtype=torch.uint8),
        )
    )


@pytest.mark.parametrize(
    'entry',
    [
        ['float32', [2**30], 32],
        ['float32', [10**30], 32],
        ['float32', [2**20, 2**20, 2**20], 32],
        ['float32', [0, 10**30], 32],
        ['float32', [-2, -1], 32],
        ['float32', [True, 2], 32],
        ['float32', [2.0], 32],
        ['float32', '2', 32],
        ['float32', [1] * 60 + [2], 32],
        ['float32', [2], 16],
        ['float32', [2], 4],
        ['float32', [2], -32],
        ['int8', [8], 1],
        ['int8', [8], 8.0],
        ['int8', [64], 0],
        ['load', [2], 32],
        ['Tensor', [2], 32],
        [['float32'], [2], 32],
        ['float32', [2]],
        'x',
        None,
    ],
    ids=str,
)
def test_claimed_shapes_are_held_against_what_there_is(entry):
    assert decode(header_of())['state_dict']['x'].shape == (2,)
    with pytest.raises(ValueError):
        decode(header_of(tensors={'x': entry}))


@pytest.mark.parametrize(
    'header', [dict(meta=3), dict(tensors=[1]), dict(meta=None)], ids=str
)
def test_a_header_of_another_form_is_refused(header):
    with pytest.raises(ValueError, match='header'):
        decode(header_of(**header))


def test_a_header_is_not_unpacked_beyond_its_limit():
    """Half a megabyte that would be half a gigabyte."""
    pack = zlib.compressobj(9)
    zeros = b' ' * 2**20
    packed = b''.join(pack.compress(zeros) for _ in range(512)) + pack.flush()
    assert len(packed) < 2**20
    content = signed(
        dict(
            format=torch.tensor(2),
            header=torch.frombuffer(bytearray(packed), dtype=torch.uint8),
            data=torch.zeros(0, dtype=torch.uint8),
        )
    )
    with pytest.raises(ValueError, match=f'{MAX_HEADER_BYTES:,} bytes'):
        decode(content)


def test_an_archive_is_not_unpacked_beyond_its_size(tmp_path):
    source, path = str(tmp_path / 'a.pth'), str(tmp_path / 'b.pth')
    torch.save(dict(x=torch.zeros(2**26)), source)
    with (
        zipfile.ZipFile(source) as old,
        zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as new,
    ):
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    assert Path(path).stat().st_size < 2**20
    with pytest.raises(ValueError, match='claim to hold'):
        read_checkpoint(path)


@pytest.mark.parametrize(
    'shape',
    [
        torch.tensor([3, 100_000, 100_000]),
        torch.tensor([3, 2**62, 4]),
        torch.tensor([3, -6, 6]),
        torch.tensor([0, 6, 6]),
        torch.tensor([3.0, 6.0, 6.0]),
        torch.tensor(3),
        torch.tensor([[3, 6, 6]]),
    ],
    ids=lambda x: str(x.tolist()),
)
def test_the_image_of_a_file_has_limits(write, shape):
    path = write(lambda meta, state: state.update(input_shape=shape))
    with pytest.raises(ValueError, match='input_shape=.*expected the shape'):
        mmrazor_brecq.load(network(), path)


WEIGHT, GRID = 'architecture.0.weight', 'architecture.0.weight_quantizer'
INPUT = 'architecture.1.input_quantizer'
NUMBERS = [float('nan'), float('inf'), -float('inf'), 0.0, -0.1, 1e-40]


@pytest.mark.parametrize('number', NUMBERS)
@pytest.mark.parametrize('key', [f'{GRID}.scale', f'{INPUT}.scale'])
def test_a_scale_is_a_normal_number_above_zero(write, key, number):
    def change(meta, state):
        state[key].view(-1)[-1] = number

    with pytest.raises(ValueError, match=rf'{key}'):
        mmrazor_brecq.load(network(), write(change))


@pytest.mark.parametrize(
    'key, value',
    [
        ('architecture.0.bias', float('nan')),
        ('architecture.0.bias', float('inf')),
        ('architecture.1.bias', -float('inf')),
    ],
)
def test_a_bias_is_finite(write, key, value):
    def change(meta, state):
        state[key][0] = value

    with pytest.raises(ValueError, match=key):
        mmrazor_brecq.load(network(), write(change))


@pytest.mark.parametrize(
    'key, change',
    [
        (WEIGHT, lambda x: x.to(torch.int16)),
        (WEIGHT, lambda x: x.to(torch.uint8)),
        (WEIGHT, lambda x: x.float()),
        (WEIGHT, lambda x: x[:1]),
        ('architecture.0.weight_quantizer.bits', lambda x: x - x + 4),
        ('architecture.0.weight_quantizer.bits', lambda x: x - x + 99),
        (f'{INPUT}.zero_point', lambda x: x - x + 300),
        (f'{INPUT}.zero_point', lambda x: x - x - 1),
        (f'{INPUT}.bits', lambda x: x - x),
    ],
)
def test_integers_are_those_of_their_bits(write, key, change):
    path = write(lambda meta, state: state.update({key: change(state[key])}))
    with pytest.raises(ValueError, match=r'architecture\.[01]|input_shape'):
        mmrazor_brecq.load(network(), path)


def test_weights_lie_within_their_bits(write):
    def change(meta, state):
        meta['quantization']['first_last_bits'] = 4
        for layer in '01':
            state[f'architecture.{layer}.weight_quantizer.bits'].fill_(4)
            state[f'architecture.{layer}.input_quantizer.bits'].fill_(4)
            state[f'architecture.{layer}.input_quantizer.zero_point'].zero_()
            state[f'architecture.{layer}.weight_quantizer.zero_point'].zero_()
        state[WEIGHT].fill_(100)

    with pytest.raises(ValueError, match=f'{WEIGHT}.*100, expected.*-8 to 7'):
        mmrazor_brecq.load(network(), write(change))


@pytest.mark.parametrize('number', [0, -1, 3, 2**62, 99])
def test_unknown_formats_are_refused(good, number):
    content = encode(good['state_dict'], {}, good['meta'])
    content['format'].fill_(number)
    with pytest.raises(ValueError, match=f'format {number}'):
        decode(content)


def test_keys_are_those_of_the_network(write):
    for change in (
        lambda meta, state: state.pop('architecture.0.bias'),
        lambda meta, state: state.update(spare=torch.ones(1)),
    ):
        with pytest.raises(ValueError, match='architecture.0.bias|spare'):
            mmrazor_brecq.load(network(), write(change))


@pytest.fixture(scope='module')
def demo_state(demo, tmp_path_factory):
    """A quantized checkpoint of the demo, and the options of its config."""
    folder = tmp_path_factory.mktemp('demo')
    cfg = demo_runs.quick_config(folder)
    model = build_model(cfg)
    load_float(model, demo_runs.FLOAT)
    images = torch.rand(4, 3, 32, 32)
    model.reconstructor = TASK_UTILS.build(
        dict(type='NearestRounding', batch_size=2)
    )
    list(model.reconstruct(model.prepare(images[:1]), [images]))
    mmrazor_brecq.save(model, str(folder / 'quantized.pth'))
    return read_checkpoint(str(folder / 'quantized.pth'))


@ENDINGS
def test_the_tools_run_nothing(trap, demo_state, tmp_path, ending):
    path = str(tmp_path / f'evil.{ending}')
    meta = dict(demo_state['meta'], partition=dict(type=f'{trap}.Part'))
    encoded = encode(demo_state['state_dict'], {}, meta)
    if ending == 'pth':
        torch.save(encoded, path)
    else:
        pytest.importorskip('safetensors.torch').save_file(encoded, path)
    cfg = demo_runs.quick_config(tmp_path / 'run')
    with pytest.raises(ValueError, match=r'evil.*meta\.partition'):
        evaluate(copy.deepcopy(cfg), path)
    pytest.importorskip('onnxruntime')
    with pytest.raises(ValueError, match=r'evil.*meta\.partition'):
        export(cfg, path, Request(output=str(tmp_path / 'm.onnx')))


def test_a_run_that_goes_on_runs_nothing(demo, tmp_path, monkeypatch):
    """A stranger's folder: run.json and its units are as it is written."""
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
    mark = tmp_path / 'ran'
    add_unit = Progress.add_unit

    def stop(self, *args):
        add_unit(self, *args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Progress, 'add_unit', stop)
        ptq(demo_runs.quick_config(tmp_path / 'run'), demo_runs.FLOAT)
    folder = tmp_path / 'run' / 'progress'
    content = json.loads((folder / 'run.json').read_text())
    torch.save(dict(x=Runs(str(mark))), folder / '0000.pth')
    data = (folder / '0000.pth').read_bytes()
    content['hashes'] = [hashlib.sha256(data).hexdigest()]
    del content['checksum']
    content['checksum'] = checksum_of(content)
    (folder / 'run.json').write_text(json.dumps(content))
    with pytest.raises(ValueError, match='0000.pth'):
        ptq(
            demo_runs.quick_config(tmp_path / 'run'),
            demo_runs.FLOAT,
            resume=True,
        )
    assert not mark.exists()


def test_every_load_of_torch_says_how():
    """Torch 2.4 runs code unless it is told not to."""
    root = Path(__file__).parents[2]
    calls = [
        (file, node)
        for top in ('mmrazor_brecq', 'tools', 'benchmarks', 'demo', 'tests')
        for file in (root / top).rglob('*.py')
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) == 'torch.load'
    ]
    assert calls
    for file, node in calls:
        said = {keyword.arg for keyword in node.keywords}
        assert 'weights_only' in said, f'{file}:{node.lineno}'
