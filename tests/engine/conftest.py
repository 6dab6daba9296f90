"""Runs of seconds: the demo's ResNet-18 with few images and iterations."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from mmrazor_brecq.config.load import load_config

ROOT = Path(__file__).parents[2]
CONFIG = str(
    ROOT / 'configs/brecq/resnet/brecq_resnet18_w4a4_fashion-mnist.py'
)
FLOAT = str(ROOT / 'demo/resnet18_fashion-mnist.pth')
QUICK = {
    'model.reconstructor.iterations': 2,
    'model.reconstructor.batch_size': 8,
    'model.reconstructor.autocast': None,
    'test_cfg.calibration.num_images': 24,
    'test_cfg.calibration.dataloader.batch_size': 12,
    'test_dataloader.batch_size': 32,
    'test_dataloader.dataset.indices': 64,
    'test_dataloader.dataset.pipeline.0.scale': 32,
    'test_cfg.calibration.dataloader.dataset.pipeline.0.scale': 32,
}


@pytest.fixture(scope='module', autouse=True)
def demo():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('MMRAZOR_BRECQ_DEMO', str(ROOT / 'demo'))
        yield


def quick_config(folder, **options):
    """Return the config of a short run; `__` in a name stands for a dot."""
    changes = {k.replace('__', '.'): v for k, v in options.items()}
    cfg = load_config(CONFIG, {**QUICK, **changes}, str(folder))
    # Runs of one second must not share a visualizer.
    cfg.experiment_name = uuid.uuid4().hex
    return cfg


@pytest.fixture
def quick(tmp_path):
    """Return a function that makes the config of a run in a new folder."""
    return lambda work_dir='run', **options: quick_config(
        tmp_path / work_dir, **options
    )
