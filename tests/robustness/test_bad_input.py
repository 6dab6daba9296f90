"""Mistakes of users, and the errors that answer them.

Every error is one line with the key, and the value or what is expected. It
comes before any work and leaves no folder behind.
"""

from __future__ import annotations

import copy
import runpy
import sys
import uuid
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import mmrazor_brecq
from mmrazor_brecq.algorithms import BRECQ
from mmrazor_brecq.config.load import load_config
from mmrazor_brecq.engine.deploy import Request
from mmrazor_brecq.engine.launch import build_model, ptq
from mmrazor_brecq.registry import MODELS, TASK_UTILS

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / 'configs/mixed_precision/resnet18_fashion-mnist.py'
FLOAT = str(ROOT / 'demo/resnet18_fashion-mnist.pth')
IMAGES = torch.zeros(4, 3, 8, 8)
#: Values that are no whole number of 1 or more.
NO_COUNT = (0, -1, 2.5, 3.0, True, '3', None, [4], 10**30)
#: Values that are no number from 0 to 1.
NO_FRACTION = (-0.1, 2, True, '0.5', float('nan'), float('inf'))
#: Values that are neither True nor False.
NO_FLAG = ('no', 1, 0.0, 'True')
COUNT = 'expected a whole number from 1'
FRACTION = 'expected a number from 0 to 1'
FLAG = 'expected True or False'


def show(value):
    """Return the name of a test case, the same in every process."""
    text = value.__name__ if isinstance(value, type) else str(value)
    return text if len(text) < 60 and ' at 0x' not in text else None


def each(key, values, words):
    """Return a case for each value of one key."""
    return [({key: value}, [f'{key}=', words]) for value in values]


def fails(call, words):
    """Check that a call fails with a message of one line with these words."""
    with pytest.raises((ValueError, TypeError)) as info:
        call()
    message = str(info.value)
    assert '\n' not in message
    for word in words:
        assert word in message, message


# Functions -----------------------------------------------------------------

QUANTIZE = [
    *each('weight_bits', (1, 9, '4', True, 4.0, None), 'from 2 to 8'),
    *each('activation_bits', (0, 16, '4', False, 4.5), 'or None'),
    *each('batch_size', NO_COUNT, COUNT),
    *each('seed', (-1, 1.0, '0', True, None, 2**32), 'from 0 to 4,294,967,'),
    *each(
        'memory',
        ('0B', 'much', '', '1 potato', 0, 1.5, True, -1, '-1GiB', [1]),
        "expected a size such as '1GiB'",
    ),
    *each('symmetric', ('no', 1), 'expected True or False or None'),
    *each('images', (None, 'x', 3, np.zeros(3)), 'a floating-point'),
    *each('images', (IMAGES.byte(), IMAGES.cfloat()), 'a floating-point'),
    *each('images', (IMAGES.to('meta'),), 'on the meta device'),
    *each('images', (IMAGES.to_sparse(),), 'torch.sparse_coo'),
    *each('images', (torch.zeros(4, 3, 0, 8),), 'N x C x H x W'),
    *each('images', (torch.zeros(()), torch.zeros(3)), 'N x C x H x W'),
    ({'partition': 'LayerPartitions'}, ["mean 'LayerPartition'"]),
    *each('partition', (4, [], True), 'expected a dict with `type`'),
    *each('reconstructor', (4, ('x',)), 'expected a dict with `type`'),
    ({'reconstructor': 'BlockReconstruktor'}, ["mean 'BlockReconstructor'"]),
    ({'reconstructor': 'MSE'}, ['reconstructor.type=', 'NearestRounding']),
    ({'reconstructor': {}}, ['reconstructor', 'lacks `type`']),
    ({'partition': dict(type=None)}, ['partition', 'lacks `type`']),
    ({'bit_overrides': {'head': 1}}, ["bit_overrides['head']=1", '2 to 8']),
    ({'bit_overrides': {'head': 9}}, ["bit_overrides['head']=9", '2 to 8']),
    ({'bit_overrides': {'head': '4'}}, ["['head']='4'", '2 to 8']),
    ({'bit_overrides': {'head': True}}, ["['head']=True", '2 to 8']),
    ({'bit_overrides': {'head': {}, 'x': 4}}, ["'x'", 'no layer']),
    ({'bit_overrides': {'haed': 4}}, ["did you mean 'head'"]),
    ({'bit_overrides': {'head': dict(weigth=4)}}, ["mean 'weight'"]),
    ({'bit_overrides': {'head': dict(weight=1)}}, ["['head'].weight=1"]),
    ({'bit_overrides': [4]}, ['bit_overrides=[4]', 'a dict with values']),
    ({'bit_overrides': 4}, ['bit_overrides=4', 'a dict with values']),
    ({'weigth_bits': 4}, ["did you mean 'weight_bits'"]),
]


@pytest.mark.parametrize(('change', 'words'), QUANTIZE, ids=show)
def test_quantize_refuses_wrong_arguments(change, words, toy):
    arguments = {'images': IMAGES, **change}
    fails(lambda: mmrazor_brecq.quantize(toy('residual'), **arguments), words)


class Lazy(nn.Sequential):
    def __init__(self):
        super().__init__(nn.LazyConv2d(4, 3))


def scripted_inside(network):
    network.head = torch.jit.script(network.head)
    return network


NETWORKS = {
    'None': (lambda toy: None, 'an instance of torch.nn.Module'),
    'a string': (lambda toy: 'resnet18', 'an instance of torch.nn.Module'),
    'a class': (lambda toy: nn.Linear, 'the class Linear, expected'),
    'a function': (lambda toy: toy.forward, 'an instance of torch.nn.Module'),
    'weights': (lambda toy: toy.state_dict(), 'an instance of torch.nn'),
    'scripted': (lambda toy: torch.jit.script(nn.Linear(3, 3)), 'scripted'),
    'traced': (lambda toy: torch.jit.trace(toy, IMAGES), 'traced'),
    'scripted inside': (scripted_inside, "'head' in it is scripted"),
    'lazy': (lambda toy: Lazy(), "'0.weight' has none"),
    'on meta': (lambda toy: toy.to('meta'), 'on the meta device'),
    'without layers': (lambda toy: nn.ReLU(), 'nothing to quantize'),
    'of halves': (lambda toy: toy.half(), 'expected torch.float32'),
}


@pytest.mark.parametrize('kind', NETWORKS)
@pytest.mark.filterwarnings('ignore')
def test_quantize_refuses_networks(kind, toy):
    make, words = NETWORKS[kind]
    network = make(toy('residual'))
    fails(lambda: mmrazor_brecq.quantize(network, IMAGES), [words])


@pytest.mark.parametrize('shape', [(3, 8, 8), (4, 3, 8), (4, 2, 3, 8, 8)])
def test_images_of_other_dimensions_are_refused(shape, toy):
    images = torch.zeros(shape)
    network = toy('residual')
    with pytest.raises(ValueError, match='images|N x C x H x W') as info:
        mmrazor_brecq.quantize(network, images)
    assert '\n' not in str(info.value)


def test_images_without_a_channel_dimension_are_refused():
    """A convolution of one channel takes them without an error."""
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(0)).eval()
    with pytest.raises(ValueError, match='gets no batch of images.*N x C'):
        mmrazor_brecq.quantize(network, torch.randn(16, 8, 8))


@pytest.fixture(scope='module')
def finished():
    """Return a quantized network."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)).eval()
    model, _ = mmrazor_brecq.quantize(
        network, torch.randn(8, 3, 8, 8), reconstructor='NearestRounding'
    )
    return model


OTHER_FUNCTIONS = [
    ('save', dict(model=None, path='q.pth'), 'model=None, expected a quant'),
    ('save', dict(model='q', path='q.pth'), "model='q', expected a quantized"),
    ('save', dict(model=nn.Linear(2, 2), path='q.pth'), 'a quantized BRECQ'),
    ('save', dict(path=3), 'path=3, expected'),
    ('save', dict(path=''), "path='', expected"),
    ('load', dict(network=None, path='q.pth'), 'network=None, expected'),
    ('load', dict(network=nn.Linear, path='q.pth'), 'the class Linear'),
    ('load', dict(network=Lazy(), path='q.pth'), "'0.weight' has none"),
    ('load', dict(network=nn.ReLU(), path=None), 'path=None, expected'),
    ('export_onnx', dict(batch=0), "batch=0, expected 'dynamic' or a whole"),
    ('export_onnx', dict(batch='8'), "batch='8', expected 'dynamic'"),
    ('export_onnx', dict(batch=True), "batch=True, expected 'dynamic'"),
    ('export_onnx', dict(pack='yes'), "pack='yes', expected True or False"),
    ('export_onnx', dict(force=1), 'force=1, expected True or False'),
    ('export_onnx', dict(images=None), 'images=None, expected a floating'),
    ('export_onnx', dict(images=IMAGES.int()), 'torch.int32'),
    ('export_onnx', dict(path=5), 'path=5, expected'),
    ('export_onnx', dict(path='m.pth'), 'expected a name with .onnx'),
    ('export_onnx', dict(target='onnx_runtime'), "mean 'onnxruntime'"),
    ('export_onnx', dict(target=None), 'target=None, expected a string'),
    ('export_onnx', dict(least_agreement=2), 'least_agreement=2, expected'),
    ('export_onnx', dict(lest_exact=0.5), "did you mean 'least_exact'"),
]


@pytest.mark.parametrize(
    ('name', 'change', 'words'), OTHER_FUNCTIONS, ids=show
)
def test_other_functions_refuse_wrong_arguments(
    name, change, words, finished, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    given = dict(model=finished, path='m.onnx', images=IMAGES)
    taken = dict(
        save=('model', 'path'),
        load=('path',),
        export_onnx=('model', 'images', 'path'),
    )[name]
    given = {**{key: given[key] for key in taken}, **change}
    fails(lambda: getattr(mmrazor_brecq, name)(**given), [words])
    assert not list(tmp_path.iterdir())


REQUESTS = [
    *each('images', NO_COUNT, COUNT),
    *each('least_within', NO_FRACTION, FRACTION),
    *each('verify', NO_FLAG, FLAG),
]


@pytest.mark.parametrize(('change', 'words'), REQUESTS, ids=show)
def test_an_export_refuses_wrong_settings(change, words):
    fails(lambda: Request(**change), words)


# Registered parts ----------------------------------------------------------

RATE = 'expected a number from 0 to 1,000'
PARTS = {
    'BlockReconstructor': [
        *each('iterations', NO_COUNT, COUNT),
        *each('rounding_lr', (1e30, -1, '0.1', True, None), RATE),
        *each('warmup', NO_FRACTION, FRACTION),
        *each('beta', ((1,), 2, (1, 'x'), (0, 1), [1, 2, 3]), '2 values'),
        *each('penalty', (1e30, float('nan')), 'expected a number from 0'),
        *each('autocast', ('int3', True, 16), "expected 'fastest' or"),
        *each('objective', (3, True, []), 'expected a dict with `type`'),
        ({'objective': 'MSF'}, ["type='MSF'", "did you mean 'MSE'"]),
        ({'objective': 'LpObserver'}, ["type='LpObserver'", 'one of MSE']),
        ({'objective': dict(type='MSE', rank=1)}, ['rank is an unknown key']),
        ({'refiner': dict(type='NetworkRefiner', draws=0)}, ['.draws=0']),
        (
            {
                'refiner': dict(
                    type='NetworkRefiner', augment=[dict(type='Flop')]
                )
            },
            ["refiner.augment[0].type='Flop'", "did you mean 'Flip'"],
        ),
        ({'stopping': 'BlockReconstructor'}, ['one of WhenSettled']),
        ({'iteration': 3}, ["did you mean 'iterations'"]),
    ],
    'NetworkRefiner': [
        *each('augment', ('CutMix', 3), 'expected a list'),
        *each('bias_lr', (-1, 'x'), RATE),
        ({'likelihood': 'Categoric'}, ["did you mean 'Categorical'"]),
    ],
    'FisherLowRank': [
        *each('rank', NO_COUNT, COUNT),
        *each('even', (-1, 'x', True), 'expected a number from 0'),
        *each('temper', (-1, 99, '1'), 'expected a number from 0 to 10'),
    ],
    'FisherDiag': each('per_sample', NO_FLAG, FLAG),
    'Categorical': each('temperature', (0, -1, True, '4'), 'a number above 0'),
    'WhenSettled': each('every', (0, 1.5), COUNT),
    'CutMix': [
        *each('prob', NO_FRACTION, FRACTION),
        *each('size', ((0.5,), 0.5, (0, 2)), 'expected 2 values'),
    ],
    'MixUp': each('most', (0.6, -1), 'expected a number from 0 to 0.5'),
    'LpObserver': [
        *each('p', (0, -2, '2.4', True), 'a number above 0'),
        *each('steps', (0, 2.0), COUNT),
    ],
    'PatternPartition': [
        *each('patterns', ('head', 3, None), 'expected a list'),
        ({'patterns': [3]}, ['patterns[0]=3']),
        ({}, ["'patterns'"]),
    ],
    'BlockPartition': each('backbone', (3, None), 'expected a string'),
    'StagePartition': [({'blocks': 'Blocks'}, ["mean 'BlockPartition'"])],
    'GeneticSearch': [
        *each('population', (0, 2.5, True), COUNT),
        *each('mutation', (2, '1'), FRACTION),
        *each('seed', (-1, '0'), 'from 0 to'),
    ],
    'ExactSearch': each('time_limit', (0, '60', True), 'a number above 0'),
    'FisherError': each('draws', (0, '4'), COUNT),
    'LatencyTable': each('path', (3, None), 'expected a string'),
    'ActivationQuantizer': [
        *each('bits', (1, 9, '4', True), 'from 2 to 8'),
        *each('drop_prob', NO_FRACTION, FRACTION),
        *each('symmetric', NO_FLAG, FLAG),
        ({'observer': 'Lp'}, ["type='Lp'", 'LpObserver']),
    ],
    'WeightQuantizer': [
        *each('per_channel', NO_FLAG, FLAG),
        ({'rounding': 'Adaround'}, ["did you mean 'AdaRound'"]),
        ({'rounding': 'WeightQuantizer'}, ['one of']),
    ],
}


@pytest.mark.parametrize(
    ('name', 'change', 'words'),
    [(name, *case) for name, cases in PARTS.items() for case in cases],
    ids=show,
)
def test_parts_refuse_wrong_settings(name, change, words):
    registry = MODELS if 'Quantizer' in name else TASK_UTILS
    if name == 'WeightQuantizer':
        change = dict(change, out_channels=3)
    fails(lambda: registry.build(dict(type=name, **change)), words)
    fails(lambda: registry.get(name)(**change), words)


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        *each('held_out', (0, 1, -1, True, '0.1', float('nan')), 'above 0'),
        *each('architecture', (None, 'resnet', 3), 'expected a dict or a'),
        *each('quantization', (4, 'w4a4', [4]), 'expected a dict'),
        ({'quantization': dict(activations=4)}, ["did you mean 'activation'"]),
        ({'quantization': dict(weight='x')}, ['WeightQuantizer']),
        ({'quantization': dict(weight=4.0)}, ['quantization.weight=4.0']),
        ({'quantization': dict(weight=dict(out_channels=3))}, ['out_chan']),
        ({'quantization': dict(first_last_bits=1)}, ['first_last_bits=1']),
    ],
    ids=show,
)
def test_the_model_refuses_wrong_settings(change, words, toy):
    given = {'architecture': toy('residual'), **change}
    fails(lambda: BRECQ(**given), words)


def test_a_number_or_a_name_stands_for_a_config(toy):
    model = BRECQ(
        toy('residual'),
        quantization=dict(weight=4, activation=3, bit_overrides={}),
        partition='LayerPartition',
        reconstructor='NearestRounding',
    )
    assert model.scheme.weight == dict(bits=4)
    assert model.scheme.activation == dict(bits=3)
    assert type(model.partition).__name__ == 'LayerPartition'
    assert model.partition_cfg == dict(type='LayerPartition')


# Configs -------------------------------------------------------------------

CALIBRATION = 'test_cfg.calibration'
OBJECTIVE = 'model.reconstructor.objective'
CONFIGS = [
    *each('model.reconstructor.iterations', NO_COUNT, COUNT),
    *each('model.reconstructor.batch_size', (0, '64'), COUNT),
    *each('model.held_out', (0, 1.5), 'above 0'),
    *each(f'{OBJECTIVE}.rank', (0, True), COUNT),
    *each('model.quantization.weight.bits', (1, 9, '4', True), '2 to 8'),
    *each('model.quantization.weight.symmetric', NO_FLAG, FLAG),
    *each('model.quantization.first_last_bits', (9, '8'), '2 to 8 or None'),
    *each('model.partition', (3, True), 'expected a dict with `type`'),
    *each(f'{CALIBRATION}.num_images', NO_COUNT[:-1], '2 or more'),
    *each(f'{CALIBRATION}.dataloader.batch_size', NO_COUNT, COUNT),
    *each(
        f'{CALIBRATION}.dataloader.num_workers',
        (-1, 1.5, True, '2', None),
        'expected a whole number from 0',
    ),
    *each(f'{CALIBRATION}.memory', ('0B', 0, True, 2), "such as '1GiB'"),
    *each('test_dataloader.batch_size', (0, '64', True), COUNT),
    *each('test_dataloader.num_workers', (-1, 0.5), 'a whole number from 0'),
    *each('randomness.seed', (-1, 1.5, '0', True, 2**32), 'from 0 to 4,294'),
    *each('randomness.deterministic', ('no', 1), FLAG),
    *each('mixed_precision.num_images', (0, '8'), COUNT),
    *each('mixed_precision.kinds', ('weight', 3), 'expected a list'),
    *each('mixed_precision.searcher', (3, []), 'expected a dict'),
    (
        {'mixed_precision.bits': [2, 9]},
        ['bits=[2, 9]', 'two or more'],
    ),
    ({'mixed_precision.bits': [4]}, ['mixed_precision.bits', 'two or more']),
    ({'mixed_precision.kinds': ['bias']}, ["kinds=['bias']", "'weight'"]),
    ({'mixed_precision.error': 'MSE'}, ['mixed_precision.error.type=']),
    (
        {'mixed_precision.wdths': 3},
        ['mixed_precision.wdths is an unknown key'],
    ),
    ({'mixed_precision.allowed': {'a': 9}}, ["allowed['a']=9"]),
    ({'model.reconstructr': {}}, ["did you mean 'reconstructor'"]),
    ({f'{OBJECTIVE}.rnk': 3}, [f'{OBJECTIVE}.rnk', "mean 'rank'"]),
    ({f'{OBJECTIVE}.type': 'FisherLow'}, [f'{OBJECTIVE}.type', 'LowRank']),
    ({f'{CALIBRATION}.memroy': 1}, [f'{CALIBRATION}.memroy', "'memory'"]),
    ({f'{CALIBRATION}.dataloader.batchsize': 1}, ["mean 'batch_size'"]),
    ({'model.quantization.weight.bit': 3}, ["did you mean 'bits'"]),
    ({'model.quantization.wieght': 3}, ["did you mean 'weight'"]),
    ({'model.quantization.bit_overrides': {'x': 4}}, ["'x'", 'no layer']),
    ({'test_cfg.calibraton': {}}, ["did you mean 'calibration'"]),
    ({'test_cfg.checkpoint': 3}, ['checkpoint=3', 'expected a string']),
    ({'test_cfg.fp16': 'yes'}, ["test_cfg.fp16='yes'"]),
    ({'work_dir': 3}, ['work_dir=3', 'expected a string']),
    ({'model.architecture': None}, ['model.architecture=None']),
    ({'model.architecture.backbone.dpeth': 18}, ['dpeth', "mean 'depth'"]),
    (
        {'model.architecture.backbone.type': 'ResNt'},
        ['model.architecture.backbone.type', "did you mean 'ResNet'"],
    ),
    ({'model.architecture.type': 'Imagine'}, ["type='Imagine'"]),
    (
        {f'{CALIBRATION}.dataloader.dataset.type': 'IDXDatase'},
        ['dataset.type', "mean 'mmrazor_brecq.IDXDataset'"],
    ),
    ({f'{CALIBRATION}.dataloader.dataset.imags': 3}, ['imags', "'images'"]),
]


@pytest.fixture(scope='module')
def config():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('MMRAZOR_BRECQ_DEMO', str(ROOT / 'demo'))
        yield load_config(str(CONFIG))


@pytest.mark.parametrize(('change', 'words'), CONFIGS, ids=show)
def test_configs_with_mistakes_are_refused(change, words, config, tmp_path):
    folder = tmp_path / 'run'
    cfg = copy.deepcopy(config)
    cfg.work_dir = str(folder)
    cfg.experiment_name = uuid.uuid4().hex  # Otherwise runs share a logger.
    cfg.merge_from_dict(change)
    fails(
        lambda: ptq(cfg, str(ROOT / 'demo/resnet18_fashion-mnist.pth')), words
    )
    assert not folder.exists()


def test_a_config_may_give_names_instead_of_dicts(config):
    cfg = copy.deepcopy(config)
    cfg.model.partition = 'LayerPartition'
    cfg.model.reconstructor.objective = 'MSE'
    cfg.model.quantization = dict(weight=4, activation=4)
    model = build_model(cfg)
    assert type(model.reconstructor.objective).__name__ == 'MSE'


# Tools ---------------------------------------------------------------------

TOOLS = [
    *[
        ('measure_latency.py', ['c.py', '--out', 'a.csv', option, value])
        for option in ('--repeats', '--threads')
        for value in ('0', '-1', '2.5', 'x', 'True')
    ],
    *[
        ('export.py', ['c.py', 'q.pth', '--images', value])
        for value in ('0', '-1', '1e3', '')
    ],
    *[
        ('export.py', ['c.py', 'q.pth', '--batch', value])
        for value in ('0', '-2', '1.5', 'dynamics')
    ],
    *[
        ('export.py', ['c.py', 'q.pth', option, value])
        for option in ('--least-agreement', '--least-exact', '--least-within')
        for value in ('2', '-0.5', 'nan', 'all')
    ],
    *[
        ('ptq.py', ['c.py', 'f.pth', '--recipe', 'w4a4', '--num-images', x])
        for x in ('0', '1', '-5', '2.5', 'many')
    ],
    *[
        ('test.py', ['c.py', 'q.pth', '--local_rank', value])
        for value in ('-1', 'x')
    ],
]


@pytest.mark.parametrize(('tool', 'arguments'), TOOLS, ids=str)
def test_tools_refuse_wrong_options(
    tool, arguments, monkeypatch, capsys, tmp_path
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', [tool, *arguments])
    with pytest.raises(SystemExit) as info:
        runpy.run_path(str(ROOT / 'tools' / tool), run_name='__main__')
    message = capsys.readouterr().err.strip().split('\n')[-1]
    assert info.value.code == 2
    assert arguments[-2] in message and 'expected' in message, message
    assert repr(arguments[-1]) in message
    assert not list(tmp_path.iterdir())


def test_there_are_two_hundred_mistakes():
    count = (
        len(QUANTIZE) + len(NETWORKS) + len(OTHER_FUNCTIONS) + len(REQUESTS)
    )
    count += sum(map(len, PARTS.values())) + len(CONFIGS) + len(TOOLS)
    assert count >= 200
