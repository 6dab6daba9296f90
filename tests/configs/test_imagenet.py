"""Configs for ImageNet, on a data set of that form made of noise."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from PIL import Image

ROOT = Path(__file__).parents[2]


@pytest.fixture
def imagenet(tmp_path):
    """A folder in which ``data/imagenet`` is as mmcls has it."""
    rng = np.random.default_rng(0)
    root = tmp_path / 'data/imagenet'
    (root / 'meta').mkdir(parents=True)
    for split, count in (('train', 12), ('val', 4)):
        (root / split).mkdir()
        lines = []
        for i in range(count):
            image = rng.integers(0, 256, (240, 300, 3), np.uint8)
            Image.fromarray(image).save(root / split / f'{i}.JPEG')
            lines.append(f'{i}.JPEG {i}\n')
        (root / 'meta' / f'{split}.txt').write_text(''.join(lines))
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize(
    'name',
    [
        'mobilenet_v2/brecq_mobilenet-v2_w4a32_in1k.py',
        'regnet/brecq_regnetx-600mf_w2a4_in1k.py',
    ],
)
def test_quantizes(imagenet, name):
    config = ROOT / 'configs/brecq' / name
    with DefaultScope.overwrite_default_scope('mmcls'):
        network = MODELS.build(Config.fromfile(config).model.architecture)
    torch.save(network.state_dict(), imagenet / 'float.pth')
    run = subprocess.run(
        [
            sys.executable,
            str(ROOT / 'tools/ptq.py'),
            str(config),
            'float.pth',
            '--work-dir',
            'out',
            '--cfg-options',
            'model.reconstructor.iterations=1',
            'model.reconstructor.batch_size=4',
            'test_cfg.calibration.num_images=8',
            'test_cfg.calibration.dataloader.num_workers=0',
            'test_dataloader.num_workers=0',
            'test_dataloader.persistent_workers=False',
        ],
        cwd=imagenet,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert run.returncode == 0, run.stdout
    assert 'are test images too' not in run.stdout
    report = json.loads((imagenet / 'out/report.json').read_text())
    assert report['units']
