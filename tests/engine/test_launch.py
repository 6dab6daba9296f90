"""Configs are checked before any work, and errors leave no files."""

from __future__ import annotations

import uuid

import pytest
from mmengine.registry import DATASETS

from mmrazor_brecq.cli import tool_parser
from mmrazor_brecq.config.load import load_config
from mmrazor_brecq.engine.launch import build_model, ptq

from .conftest import CONFIG, FLOAT, ROOT


def with_own_name(cfg):
    """Give a config a unique name, as runs share visualizers by name."""
    cfg.experiment_name = uuid.uuid4().hex
    return cfg


def test_a_missing_config_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match='No config at'):
        load_config(str(tmp_path / 'none.py'))


def test_a_checkpoint_given_as_config_is_refused():
    with pytest.raises(ValueError, match='pth.* is no config.*before the'):
        load_config(FLOAT)


def test_a_config_without_quantization_is_refused(tmp_path):
    path = ROOT / 'configs/float/resnet18_fashion-mnist.py'
    with pytest.raises(ValueError, match='mmrazor_brecq.BRECQ'):
        load_config(str(path), work_dir=str(tmp_path))


@pytest.mark.parametrize('key', ['modle.quantization', 'bits.weight.bits'])
def test_an_option_of_an_unknown_key_is_refused(tmp_path, key):
    with pytest.raises(KeyError, match=f'--cfg-options {key}'):
        load_config(CONFIG, {key: 3}, str(tmp_path))


def test_a_file_given_as_work_dir_is_refused(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(PermissionError, match='--work-dir'):
        load_config(CONFIG, work_dir=str(tmp_path / 'file'))


def test_options_reach_the_model(tmp_path):
    cfg = load_config(
        CONFIG, {'model.quantization.weight.bits': 3}, str(tmp_path)
    )
    assert cfg.model.quantization.weight.bits == 3
    assert cfg.model.quantization.activation.bits == 4


def test_an_architecture_is_looked_for_in_the_default_scope(tmp_path):
    cfg = load_config(CONFIG, {}, str(tmp_path))
    del cfg.model.architecture['_scope_']
    assert cfg.default_scope == 'mmcls'
    model = build_model(cfg)
    assert type(model.architecture).__name__ == 'ImageClassifier'


def test_every_run_has_a_seed(tmp_path):
    cfg = load_config(CONFIG, {'randomness.seed': None}, str(tmp_path))
    assert cfg.randomness.seed == 0
    cfg = load_config(CONFIG, {'randomness.seed': 3}, str(tmp_path))
    assert cfg.randomness.seed == 3


@pytest.mark.parametrize(
    'change',
    [
        {'model.quantisation': dict(weight=dict(bits=4))},
        {'model.quantization.weight.bit': 3},
        {'model.reconstructor.iteration': 3},
    ],
)
def test_an_unknown_key_is_refused(tmp_path, change):
    path = next(iter(change))
    cfg = load_config(CONFIG, change, str(tmp_path / 'run'))
    with pytest.raises(
        ValueError, match=f'^{path} is an unknown.*did you mean'
    ):
        ptq(cfg, 'none.pth')
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
    'change',
    [
        {'test_dataloader.dataset.spilt': 'test'},
        {'test_cfg.calibration.dataloader.dataset.spilt': 'train'},
        {'test_evaluator.topc': 1},
    ],
)
def test_an_unknown_key_of_a_constructor_is_refused(tmp_path, change):
    cfg = with_own_name(load_config(CONFIG, change, str(tmp_path)))
    word = next(iter(change)).split('.')[-1]
    with pytest.raises(ValueError, match=f'an unknown key.*{word}'):
        ptq(cfg, FLOAT)


@DATASETS.register_module()
class Faulty:
    """Data set with a required key, whose constructor has a mistake."""

    def __init__(self, required, **others):
        len(required)


@pytest.mark.parametrize(
    'keys, error, words',
    [
        ({}, ValueError, 'lacks a key.*Faulty.*required'),
        ({'required': 1}, TypeError, "'int' has no len"),
    ],
)
def test_a_missing_key_is_told_from_a_mistake_in_a_constructor(
    tmp_path, keys, error, words
):
    data_set = dict(type='Faulty', _scope_='mmengine', **keys)
    cfg = with_own_name(load_config(CONFIG, {}, str(tmp_path)))
    cfg.test_dataloader.dataset = data_set
    with pytest.raises(error, match=words):
        ptq(cfg, FLOAT)


def test_the_command_line_can_override_bits(tmp_path):
    option = "model.quantization.bit_overrides={'backbone.layer1.*': 8}"
    args = tool_parser(None, '').parse_args(
        [CONFIG, '--cfg-options', option, 'randomness.seed=3']
    )
    cfg = load_config(args.config, args.cfg_options, str(tmp_path))
    assert cfg.model.quantization.bit_overrides == {'backbone.layer1.*': 8}
    assert cfg.randomness.seed == 3


def test_a_key_of_the_runner_need_not_be_in_the_config(tmp_path):
    path = tmp_path / 'config.py'
    path.write_text(
        "model = dict(type='mmrazor_brecq.BRECQ', architecture={})\n"
    )
    cfg = load_config(str(path), {'randomness.seed': 3}, str(tmp_path))
    assert cfg.randomness.seed == 3


@pytest.mark.parametrize('calibration', [None, dict(num_images=3)])
def test_a_loop_without_calibration_images_is_refused(tmp_path, calibration):
    cfg = load_config(CONFIG, None, str(tmp_path))
    cfg.test_cfg.calibration = calibration
    with pytest.raises(ValueError, match='test_cfg.calibration'):
        ptq(cfg, 'none.pth')
    cfg.test_cfg = dict(type='TestLoop')
    with pytest.raises(ValueError, match="test_cfg.type='TestLoop'"):
        ptq(cfg, 'none.pth')


def leaves_nothing(folder, cfg, checkpoint, error, words):
    """Check that an error leaves no files in a folder."""
    with pytest.raises(error, match=words):
        ptq(cfg, checkpoint)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    'change, words',
    [
        ({'model.quantization.weight.bit': 3}, 'Weight.*bit'),
        ({'test_evaluator.topc': 1}, 'topc'),
        (
            {'test_cfg.calibration.dataloader.dataset.images': 'none.gz'},
            'No idx file',
        ),
        ({'test_cfg.calibration.num_images': 1}, 'num_images=1'),
    ],
)
def test_a_mistake_leaves_no_folder(quick, tmp_path, change, words):
    cfg = quick(
        'runs/run', **{k.replace('.', '__'): v for k, v in change.items()}
    )
    leaves_nothing(tmp_path, cfg, FLOAT, (ValueError, OSError), words)


def test_a_wrong_checkpoint_leaves_no_folder(quick, tmp_path):
    other = str(ROOT / 'demo/mobilenet-v2_fashion-mnist.pth')
    leaves_nothing(tmp_path, quick(), other, ValueError, 'no checkpoint of')


def test_a_mistake_keeps_existing_files(quick, tmp_path):
    """These are files of the user or of an earlier run."""
    folder = tmp_path / 'run'
    folder.mkdir()
    (folder / 'mine.txt').write_text('mine')
    cfg = quick(test_cfg__calibration__num_images=1)
    with pytest.raises(ValueError, match='num_images'):
        ptq(cfg, FLOAT)
    assert [path.name for path in folder.iterdir()] == ['mine.txt']


def test_the_key_of_a_missing_file_is_named(quick, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = quick()
    cfg.test_dataloader.dataset = dict(
        type='ImageNet',
        data_root='data',
        data_prefix='val/',
        pipeline=[],
    )
    words = (
        "No such file or directory: 'data/val/.*test_dataloader.dataset."
        "data_prefix='val/' asks for"
    )
    leaves_nothing(tmp_path, cfg, FLOAT, FileNotFoundError, words)
