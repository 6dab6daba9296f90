"""mmpretrain is as good a host as mmcls: a config of its zoo is quantized."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

# `make venv` installs it.
pytest.importorskip('mmpretrain', reason='the extra [mmpretrain] is missing')

ROOT = Path(__file__).parents[2]
#: The demo's narrow ResNet-18, inherited from the zoo, on the demo's images.
CONFIG = f"""
_base_ = 'mmpretrain::resnet/resnet18_8xb32_in1k.py'
custom_imports = dict(imports=['mmrazor_brecq'], allow_failed_imports=False)
model = dict(
    backbone=dict(stem_channels=24, base_channels=24),
    head=dict(num_classes=10, in_channels=192),
)
data_preprocessor = dict(
    num_classes=10, mean=[73.0] * 3, std=[90.0] * 3, to_rgb=False
)
test_dataloader = dict(
    batch_size=100,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        _delete_=True,
        type='mmrazor_brecq.IDXDataset',
        data_root={str(ROOT / 'demo/fashion_mnist')!r},
        images='t10k-images-idx3-ubyte.gz',
        labels='t10k-labels-idx1-ubyte.gz',
        indices=100,
        metainfo=dict(classes=tuple('abcdefghij')),
        pipeline=[dict(type='Resize', scale=64), dict(type='PackInputs')],
    ),
)
train_dataloader = dict(
    dataset=dict(
        test_dataloader['dataset'],
        images='calib-images-idx3-ubyte.gz',
        labels='calib-labels-idx1-ubyte.gz',
    ),
)
"""


def run_tool(name, folder, *args):
    """Run a tool in a folder; return what it told."""
    run = subprocess.run(
        [sys.executable, ROOT / f'tools/{name}.py', *args],
        env=dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1'),
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout + run.stderr


@pytest.mark.slow
def test_a_config_of_its_zoo_is_quantized_and_tested(tmp_path):
    (tmp_path / 'mine.py').write_text(CONFIG)
    run_tool(
        *('ptq', tmp_path, 'mine.py'),
        ROOT / 'demo/resnet18_fashion-mnist.pth',
        *('--recipe', 'w4a8', '--schedule', 'fast', '--num-images', '24'),
        *('--work-dir', 'out'),
        *('--cfg-options', 'model.reconstructor.iterations=4'),
    )
    report = json.loads((tmp_path / 'out/report.json').read_text())
    top1 = {
        name: report[name]['accuracy/top1']
        for name in ('float', 'nearest', 'quantized')
    }
    assert top1['float'] > 88
    assert top1['float'] - top1['quantized'] < 10
    assert report['versions']['mmrazor_brecq']
    assert any('mmpretrain' in name for name in report['versions'])
    told = run_tool('test', tmp_path, 'out/mine_w4a8.py', 'out/quantized.pth')
    assert f'accuracy/top1: {top1["quantized"]:.4f}' in told


def test_its_samples_and_metrics_serve_any_torch_network():
    from mmengine.registry import METRICS, MODELS, DefaultScope
    from mmpretrain.structures import DataSample

    from mmrazor_brecq.models import TorchModel

    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 5))
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(
            dict(
                type='mmrazor_brecq.TorchModel',
                network=network,
                data_preprocessor=dict(type='ClsDataPreprocessor'),
            )
        )
        metric = METRICS.build(dict(type='Accuracy', topk=(1, 2)))
    assert isinstance(model, TorchModel)
    images = torch.rand(4, 3, 2, 2)
    labels = network(images).argmax(1)
    samples = [DataSample().set_gt_label(int(label)) for label in labels]
    found = model(images, samples, mode='predict')
    metric.process({}, [sample.to_dict() for sample in found])
    assert metric.evaluate(4) == {'accuracy/top1': 100, 'accuracy/top2': 100}
    assert model(images, samples, mode='loss')['loss'].isfinite()
