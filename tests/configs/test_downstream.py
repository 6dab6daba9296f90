"""The repository in examples/downstream works as its README says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import mmengine.hooks  # noqa: F401  It registers the default hooks.
import pytest
from mmengine.config import Config
from mmengine.registry import (
    DATASETS,
    HOOKS,
    MODELS,
    VISUALIZERS,
    DefaultScope,
)

from mmrazor_brecq.objectives import Objective

ROOT = Path(__file__).parents[2]
HERE = ROOT / 'examples/downstream'
CONFIG = HERE / 'resnet18_w4a4_huber.py'
OURS = ROOT / 'configs/brecq/resnet/brecq_resnet18_w4a4_fashion-mnist.py'


@pytest.fixture
def cfg(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))
    monkeypatch.setenv('MMRAZOR_BRECQ_DEMO', str(ROOT / 'demo'))
    return Config.fromfile(CONFIG)


def test_the_example_changes_only_the_objective(cfg):
    objective = cfg.model.reconstructor.pop('objective')
    assert objective == dict(type='Huber')
    ours = Config.fromfile(OURS)
    ours.model.reconstructor.pop('objective')
    for part in ('weight', 'activation'):
        assert cfg.model.quantization[part] == ours.model.quantization[part]
    assert cfg.model.reconstructor == ours.model.reconstructor
    assert cfg.test_cfg.calibration == ours.test_cfg.calibration


def test_the_example_builds_in_the_scope_of_mmcls(cfg):
    with DefaultScope.overwrite_default_scope('mmcls'):
        model = MODELS.build(cfg.model)
        dataset = DATASETS.build(cfg.test_dataloader.dataset)
        VISUALIZERS.build(dict(cfg.visualizer, name='downstream'))
    objective = model.reconstructor.objective
    assert isinstance(objective, Objective)
    assert type(objective).__module__ == 'huber'
    assert dataset[0]['inputs'].shape == (3, 64, 64)


def test_inherited_hooks_are_built_without_a_warning(cfg, warnings_log):
    for hook in cfg.default_hooks.values():
        HOOKS.build(hook)
    assert not warnings_log


@pytest.mark.slow
def test_the_example_quantizes(tmp_path):
    run = subprocess.run(
        [
            sys.executable,
            '-c',
            'from mmrazor_brecq.cli import main; main()',
            'ptq',
            CONFIG.name,
            '../../demo/resnet18_fashion-mnist.pth',
            '--work-dir',
            str(tmp_path),
            '--cfg-options',
            'model.reconstructor.iterations=2',
            'test_cfg.calibration.num_images=64',
            'test_dataloader.dataset.indices=256',
        ],
        cwd=HERE,
        env=dict(os.environ, PYTHONPATH='.', MMRAZOR_BRECQ_DEMO='../../demo'),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert run.returncode == 0, run.stdout
    assert 'Failed to search registry' not in run.stdout
    report = json.loads((tmp_path / 'report.json').read_text())
    assert report['units']
