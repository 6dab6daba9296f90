from __future__ import annotations

import pytest

from mmrazor_brecq.engine.launch import load_config

from .conftest import CONFIG, ROOT


def test_missing_config(tmp_path):
    with pytest.raises(FileNotFoundError, match='No config at'):
        load_config(str(tmp_path / 'none.py'))


def test_a_config_without_quantization(tmp_path):
    path = ROOT / 'configs/float/resnet18_fashion-mnist.py'
    with pytest.raises(ValueError, match='mmrazor_brecq.BRECQ'):
        load_config(str(path), work_dir=str(tmp_path))


@pytest.mark.parametrize('key', ['modle.quantization', 'bits.weight.bits'])
def test_an_option_that_changes_nothing(tmp_path, key):
    with pytest.raises(KeyError, match=f'--cfg-options {key}'):
        load_config(CONFIG, {key: 3}, str(tmp_path))


def test_a_work_dir_that_is_a_file(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(PermissionError, match='--work-dir'):
        load_config(CONFIG, work_dir=str(tmp_path / 'file'))


def test_options_reach_the_model(tmp_path):
    cfg = load_config(
        CONFIG, {'model.quantization.weight.bits': 3}, str(tmp_path)
    )
    assert cfg.model.quantization.weight.bits == 3
    assert cfg.model.quantization.activation.bits == 4


def test_every_run_has_a_seed(tmp_path):
    cfg = load_config(CONFIG, {'randomness.seed': None}, str(tmp_path))
    assert cfg.randomness.seed == 0
    cfg = load_config(CONFIG, {'randomness.seed': 3}, str(tmp_path))
    assert cfg.randomness.seed == 3
