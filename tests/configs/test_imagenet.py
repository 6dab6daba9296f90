"""Float configs for ImageNet, on images of noise in its folders."""

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
from mmengine.utils import get_installed_path
from PIL import Image

from mmrazor_brecq.config.recipe import Recipe, compose

ROOT = Path(__file__).parents[2]
MMCLS = get_installed_path('mmcls') + '/.mim/configs'
REGNET = str(ROOT / 'configs/float/regnetx-600mf_in1k.py')
TORCHVISION = str(ROOT / 'configs/torch_model/torchvision-resnet18_in1k.py')


@pytest.fixture
def imagenet(tmp_path):
    """Return a folder with ``data/imagenet`` in the form of mmcls."""
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


def save_random_weights(config, folder):
    """Save a checkpoint of random weights for a float config."""
    with DefaultScope.overwrite_default_scope('mmcls'):
        network = MODELS.build(Config.fromfile(config).model)
    torch.save(network.state_dict(), folder / 'float.pth')


def run_tool(folder, tool, config, *options, args=()):
    """Run a tool in a folder, on 8 images; return its output."""
    run = subprocess.run(
        [
            sys.executable,
            str(ROOT / 'tools' / tool),
            str(config),
            'float.pth',
            '--work-dir',
            'out',
            *args,
            '--cfg-options',
            'model.reconstructor.batch_size=4',
            'test_cfg.calibration.num_images=8',
            'test_cfg.calibration.dataloader.num_workers=0',
            'test_dataloader.num_workers=0',
            'test_dataloader.persistent_workers=False',
            *options,
        ],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert run.returncode == 0, run.stdout
    return run.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    'name, recipe',
    [
        (REGNET, 'w2a4'),
        (TORCHVISION, 'w4a8'),
    ],
    ids=['regnetx-600mf', 'torchvision'],
)
def test_one_command_quantizes_a_float_config(imagenet, name, recipe):
    save_random_weights(name, imagenet)
    output = run_tool(
        imagenet,
        'ptq.py',
        name,
        'model.reconstructor.iterations=1',
        args=('--recipe', recipe, '--schedule', 'fast'),
    )
    assert 'are test images too' not in output
    report = json.loads((imagenet / 'out/report.json').read_text())
    assert report['units']
    composed = f'out/{Path(name).stem}_{recipe}.py'
    (imagenet / 'float.pth').unlink()
    (imagenet / 'out/quantized.pth').rename(imagenet / 'float.pth')
    output = run_tool(imagenet, 'test.py', composed)
    top1 = report['quantized']['accuracy/top1']
    assert f'accuracy/top1: {top1:.4f}' in output


@pytest.mark.slow
def test_bits_are_searched_for_a_composed_config(imagenet):
    name, layers = 'mobilenet_v2/mobilenet-v2_8xb32_in1k.py', 53
    save_random_weights(f'{MMCLS}/{name}', imagenet)
    config = imagenet / 'composed.py'
    composed = compose(Config.fromfile(f'{MMCLS}/{name}'), Recipe('w4a32'))
    composed.dump(str(config))
    output = run_tool(
        imagenet,
        'search_bits.py',
        config,
        'model.quantization.weight.observer.type=MinMaxObserver',
        'mixed_precision.reconstructor.type=NearestRounding',
        'mixed_precision.error.type=FisherError',
        'mixed_precision.error.draws=1',
        'mixed_precision.num_images=2',
        'mixed_precision.bits=[2,4,8]',
        args=('--equal-to', 'w4'),
    )
    fragment = imagenet / 'out/bits_equal_to_w4.py'
    assert str(fragment.relative_to(imagenet)) in output
    overrides = Config.fromfile(fragment).model.quantization.bit_overrides
    assert len(overrides) == layers
    found = json.loads((imagenet / 'out/search.json').read_text())
    (uniform,) = (u for u in found['uniform'] if u['bits'] == 4)
    (mixed,) = found['found']
    assert mixed['loss'] < uniform['loss']
    for cost in 'weight_bytes', 'bops':
        assert uniform['costs'][cost] > 0
    assert mixed['costs']['weight_bytes'] <= uniform['costs']['weight_bytes']
