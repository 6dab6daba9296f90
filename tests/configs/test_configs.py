from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, DefaultScope
from mmengine.runner import Runner

from mmrazor_brecq.algorithms import BRECQ
from mmrazor_brecq.layers import activation_quantizers, quant_layers
from mmrazor_brecq.registry import LOOPS

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / 'configs'
BRECQ_CONFIGS = sorted((CONFIGS / 'brecq').rglob('brecq_*.py'))
FLOAT_CONFIGS = sorted((CONFIGS / 'float').rglob('*.py'))
BITS = ['w8a8', 'w4a4', 'w3a3', 'w2a4', 'w2a2', 'w4a32', 'w2a32']
DEMO = CONFIGS / 'brecq/resnet/brecq_resnet18_w4a4_fashion-mnist.py'
IMAGENET = CONFIGS / 'brecq/resnet/brecq_resnet18_w4a4_in1k.py'

#: Keys that configs of `_base_` define for others, which delete them.
BUILDING_BLOCKS = {'bits', 'schedule', 'calibration'}

each_config = pytest.mark.parametrize(
    'path', BRECQ_CONFIGS, ids=lambda path: path.stem
)


@pytest.fixture(autouse=True)
def scope():
    with DefaultScope.overwrite_default_scope('mmcls'):
        yield


@cache
def parse(path):
    return Config.fromfile(path)


def written(path, text):
    path.write_text(text)
    return Config.fromfile(path)


def bits_in_name(name):
    """Return the bits of weights and activations in a config's name."""
    found = re.search(r'_w(\d+)a(\d+)_', name)
    weight, activation = map(int, found.groups()) if found else (8, 8)
    return weight, None if activation == 32 else activation


def without_scope(value):
    if isinstance(value, dict):
        return {
            k: without_scope(v) for k, v in value.items() if k != '_scope_'
        }
    if isinstance(value, (list, tuple)):
        return [without_scope(v) for v in value]
    return value


def bits_of_activations(module):
    return {q.grid.bits for q in activation_quantizers(module)}


@each_config
def test_a_config_builds_a_model_with_the_bits_in_its_name(path):
    cfg = parse(path)
    model = MODELS.build(cfg.model)
    assert isinstance(model, BRECQ)
    scheme, (weight, activation) = model.scheme, bits_in_name(path.stem)
    assert scheme.weight['bits'] == weight
    assert (scheme.activation or {}).get('bits') == activation
    assert scheme.first_last_bits == 8


@each_config
def test_the_test_loop_of_a_config_quantizes(path):
    cfg = parse(path)
    assert cfg.test_cfg.type == 'mmrazor_brecq.PTQLoop'
    assert LOOPS.get(cfg.test_cfg.type).__name__ == 'PTQLoop'
    assert cfg.test_cfg.calibration.num_images == 1024
    assert cfg.randomness.seed is not None, 'a run could not be resumed'


@each_config
def test_a_config_has_no_training_settings(path):
    cfg = parse(path)
    left = {
        key
        for key, value in cfg.items()
        if value and re.search(r'train|^val|optim|sched|scale_lr', key)
    }
    assert not left
    assert not cfg.get('custom_hooks')
    assert not BUILDING_BLOCKS & set(cfg)


@each_config
def test_training_images_with_the_test_pipeline_calibrate(path):
    cfg = parse(path)
    calibration = without_scope(cfg.test_cfg.calibration.dataloader.dataset)
    test = without_scope(cfg.test_dataloader.dataset)
    differ = {key for key in calibration if calibration[key] != test[key]}
    assert calibration.keys() == test.keys()
    if path.stem.endswith('_in1k'):
        assert differ == {'ann_file', 'data_prefix'}
        assert calibration['ann_file'] == 'meta/train.txt'
        assert calibration['data_prefix'] == 'train'
        sampler = cfg.test_cfg.calibration.dataloader.sampler
        assert sampler.shuffle and sampler.seed == 0
    else:
        assert differ == {'images', 'labels'}
        assert calibration['images'] == 'calib-images-idx3-ubyte.gz'
        assert calibration['labels'] == 'calib-labels-idx1-ubyte.gz'
        assert test['images'].startswith('t10k')


@pytest.mark.parametrize('bits', BITS)
@pytest.mark.parametrize(
    'name',
    [
        'resnet/brecq_resnet18_{}_fashion-mnist.py',
        'mobilenet_v2/brecq_mobilenet-v2_{}_fashion-mnist.py',
    ],
)
def test_there_is_a_config_for_all_bits_of_the_paper(name, bits):
    assert CONFIGS / 'brecq' / name.format(bits) in BRECQ_CONFIGS


@pytest.mark.parametrize('bits', ['w3a3', 'w2a4', 'w4a32'])
@pytest.mark.parametrize('architecture', ['resnet18', 'mobilenet-v2'])
def test_a_prepared_network_has_the_bits_in_the_name(architecture, bits):
    name = f'brecq_{architecture}_{bits}_fashion-mnist.py'
    (path,) = CONFIGS.rglob(name)
    weight, activation = bits_in_name(name)
    model = MODELS.build(parse(path).model)
    model.prepare(torch.zeros(1, 3, 64, 64))
    layers = quant_layers(model.architecture)
    ends = {next(iter(layers)), next(reversed(layers))}
    inputs = {'ends': set(), 'others': set()}
    for name, layer in layers.items():
        group = 'ends' if name in ends else 'others'
        grid = layer.weight_quantizer.grid
        assert grid.bits == (8 if name in ends else weight)
        inputs[group] |= bits_of_activations(layer.input_quantizer)
    doors = [m for n, m in model.named_modules() if n.endswith('.door')]
    for door in doors:
        inputs['others'] |= bits_of_activations(door)
    assert inputs['ends'] == ({8} if activation else set())
    assert inputs['others'] == ({activation} if activation else set())
    assert bool(doors) == bool(activation)


def test_the_yaml_config_equals_the_python_config():
    yaml = Config.fromfile(DEMO.with_suffix('.yml'))
    assert set(yaml) - set(parse(DEMO)) == {'bits'}
    yaml.pop('bits')
    assert yaml.to_dict() == parse(DEMO).to_dict()


@pytest.mark.parametrize('schedule', ['fast', 'default', 'best'])
def test_one_line_sets_another_schedule(tmp_path, schedule):
    base = f'{CONFIGS}/_base_/schedules'
    cfg = written(
        tmp_path / 'mine.py',
        f"_base_ = ['{DEMO}', '{base}/{schedule}.py']\n"
        "model = dict(reconstructor=_base_.pop('schedule'))",
    )
    chosen = Config.fromfile(f'{base}/{schedule}.py').schedule.to_dict()
    expected = parse(DEMO).to_dict()
    expected['model']['reconstructor'].update(chosen)
    assert cfg.to_dict() == expected


def test_schedules_differ_in_iterations_and_objective():
    fast, default, best = (
        Config.fromfile(CONFIGS / f'_base_/schedules/{name}.py').schedule
        for name in ('fast', 'default', 'best')
    )
    assert fast.iterations < default.iterations < best.iterations
    assert ['refiner' in x for x in (fast, default, best)] == [0, 0, 1]
    types = [x.objective.type for x in (fast, default, best)]
    assert types == ['FisherDiag', 'FisherLowRank', 'FisherDiag']


@pytest.mark.parametrize('path', [DEMO, IMAGENET], ids=lambda p: p.stem)
def test_the_runner_of_mmengine_builds_from_a_config(tmp_path, path):
    cfg = Config.fromfile(path)
    cfg.work_dir = str(tmp_path)
    cfg.experiment_name = f'{path.stem}_{tmp_path.name}'
    runner = Runner.from_cfg(cfg)
    assert isinstance(runner.model, BRECQ)
    preprocessor = runner.model.data_preprocessor
    assert preprocessor is runner.model.architecture.data_preprocessor
    mean = preprocessor.mean.flatten().tolist()
    assert mean == pytest.approx(cfg.data_preprocessor.mean)


@pytest.mark.parametrize(
    'part, count',
    [('test_dataloader', 10000), ('test_cfg.calibration.dataloader', 1024)],
)
def test_the_demo_has_its_images(monkeypatch, part, count):
    monkeypatch.chdir(ROOT)
    cfg = parse(DEMO)
    for name in part.split('.'):
        cfg = cfg[name]
    dataset = DATASETS.build(cfg.dataset)
    assert len(dataset) == count
    assert dataset[0]['inputs'].shape == (3, 64, 64)
    labels = {dataset.get_data_info(i)['gt_label'] for i in range(200)}
    assert labels == {*range(10)}


def test_an_environment_variable_names_the_demo_folder(monkeypatch):
    monkeypatch.setenv('MMRAZOR_BRECQ_DEMO', '/somewhere')
    cfg = Config.fromfile(DEMO)
    for loader in (cfg.test_dataloader, cfg.test_cfg.calibration.dataloader):
        assert loader.dataset.data_root == '/somewhere/fashion_mnist'


@pytest.mark.parametrize('path', FLOAT_CONFIGS, ids=lambda path: path.stem)
def test_float_models_build_and_train(path):
    cfg = parse(path)
    assert type(MODELS.build(cfg.model)).__name__ == 'ImageClassifier'
    assert cfg.train_cfg and cfg.train_dataloader and cfg.optim_wrapper


def test_an_environment_variable_names_the_training_data(monkeypatch):
    monkeypatch.setenv('FASHION_MNIST', '/somewhere')
    cfg = Config.fromfile(CONFIGS / 'float/resnet18_fashion-mnist.py')
    for split in ('train', 'val', 'test'):
        dataset = cfg[f'{split}_dataloader'].dataset
        assert dataset.data_root == '/somewhere'
        stem = 'train' if split == 'train' else 't10k'
        assert dataset.images.startswith(stem)
        assert dataset.labels.startswith(stem)


def test_regnet_600mf_has_the_sizes_of_the_paper():
    cfg = parse(CONFIGS / 'float/regnetx-600mf_in1k.py')
    model = MODELS.build(cfg.model)
    assert model.backbone.stage_widths == [48, 96, 240, 528]
    assert model.backbone.stage_blocks == [1, 3, 5, 7]
    assert sum(p.numel() for p in model.parameters()) == 6196040
