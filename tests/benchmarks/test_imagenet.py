"""The table of real networks on real images, with toys in their places."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / 'benchmarks/imagenet.py'


@pytest.fixture
def compare(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import imagenet

    yield imagenet.compare
    for name in ('imagenet', 'accuracy', 'quantize'):
        sys.modules.pop(name, None)


def test_the_float_network_is_itself(compare):
    logits = torch.randn(50, 7)
    found = compare(logits, logits, logits.argmax(1))
    assert found['top1'] == found['top5'] == found['agreement'] == 100
    assert found['kl'] == found['difference'] == found['kl_error'] == 0


def test_differences_are_paired(compare):
    """Two networks that err on the same images differ by nothing."""
    torch.manual_seed(0)
    goal, labels = torch.randn(1000, 3), torch.randint(3, (1000,))
    found = compare(goal * 2, goal, labels)
    assert found['difference'] == found['difference_error'] == 0
    assert found['agreement'] == 100 and found['kl'] > 0
    other = goal.clone()
    other[:10] = 9 * nn.functional.one_hot((labels[:10] + 1) % 3, 3)
    found = compare(other, goal, labels)
    before = (goal.argmax(1) == labels).float()
    lost = 100 * float(before[:10].sum()) / 1000
    assert found['difference'] == pytest.approx(-lost)
    change = torch.zeros(1000)
    change[:10] = -100 * before[:10]
    assert found['difference_error'] == pytest.approx(
        float(change.std()) / 1000**0.5
    )


def test_divergence_is_that_from_float(compare):
    goal = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    logits = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    p, q = goal.softmax(1), logits.softmax(1)
    expected = (p * (p / q).log()).sum(1)
    found = compare(logits, goal, torch.tensor([0, 0]))
    assert found['kl'] == pytest.approx(float(expected.mean()), rel=1e-5)
    assert found['kl_error'] == pytest.approx(
        float(expected.std()) / 2**0.5, rel=1e-5
    )
    assert found['top1'] == 50 and found['top5'] == 100


@pytest.fixture
def toys(tmp_path):
    """A folder of images of noise, a network, and its config."""
    rng = np.random.default_rng(0)
    for split, count, size in (('calibration', 16, 40), ('val', 10, 33)):
        (tmp_path / split).mkdir()
        lines = []
        for i in range(count):
            pixels = rng.integers(0, 256, (size, size, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / split / f'{i}.png')
            lines.append(f'{i}.png {i % 6}\n')
        (tmp_path / f'{split}.txt').write_text(''.join(lines))
    (tmp_path / 'toy_network.py').write_text(
        'from torch import nn\n'
        'def make(classes):\n'
        '    return nn.Sequential(\n'
        '        nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 8, 3, 2),\n'
        '        nn.AdaptiveAvgPool2d(1), nn.Flatten(),\n'
        '        nn.Linear(8, classes))\n'
    )
    (tmp_path / 'toy.py').write_text(
        f"_base_ = '{ROOT}/configs/_base_/datasets/imagenet.py'\n"
        "model = dict(type='mmrazor_brecq.TorchModel',\n"
        "    network=dict(type='toy_network.make', classes=6))\n"
        'test_pipeline = [\n'
        "    dict(type='LoadImageFromFile'),\n"
        "    dict(type='ResizeEdge', scale=40, edge='short'),\n"
        "    dict(type='CenterCrop', crop_size=32),\n"
        "    dict(type='PackClsInputs')]\n"
        'test_dataloader = dict(dataset=dict(pipeline=test_pipeline))\n'
    )
    (tmp_path / 'short.py').write_text(
        "schedule = dict(type='BlockReconstructor', iterations=2,\n"
        '    batch_size=4)\n'
    )
    torch.manual_seed(0)
    sys.path.insert(0, str(tmp_path))
    try:
        from toy_network import make

        torch.save(make(6).state_dict(), tmp_path / 'toy.pth')
    finally:
        sys.path.remove(str(tmp_path))
        sys.modules.pop('toy_network', None)
    return tmp_path


def run(toys, *arguments):
    paths = [str(toys), str(ROOT), os.environ.get('PYTHONPATH', '')]
    return subprocess.run(
        [sys.executable, str(SCRIPT), str(toys), *arguments],
        capture_output=True,
        text=True,
        cwd=toys,
        env=dict(os.environ, PYTHONPATH=os.pathsep.join(paths)),
    )


@pytest.mark.slow
def test_measures_each_row_once(toys):
    arguments = (
        *('--networks', f'{toys}/toy.py={toys}/toy.pth'),
        *('--bits', 'w8a8', 'w2a8', '--schedules', f'{toys}/short.py'),
        *('--margin', '1', '--num-images', '12', '--out', 'out'),
    )
    done = run(toys, *arguments)
    assert done.returncode == 0, done.stderr
    assert 'W2A8' in done.stdout and 'shortcut' in done.stdout
    rows = json.loads((toys / 'out/imagenet.json').read_text())['rows']
    assert [row['bits'] for row in rows] == ['w8a8', 'w2a8']
    for found in rows:
        assert found['images'] == 12 and found['test_images'] == 10
        assert found['cpu_seconds'] > 0 and found['peak_memory_mb'] > 50
        assert found['network'] == 'toy' and found['seed'] == 0
    assert 0 < rows[0]['kl'] < rows[1]['kl']
    folders = sorted(path.name for path in (toys / 'out').iterdir())
    times = {
        path: path.stat().st_mtime_ns
        for path in (toys / 'out').rglob('run.json')
    }
    assert len(times) == 3
    assert run(toys, *arguments).returncode == 0
    assert {p: p.stat().st_mtime_ns for p in times} == times
    assert sorted(p.name for p in (toys / 'out').iterdir()) == folders


def test_a_checkpoint_that_is_not_there_is_named(toys):
    done = run(toys, '--networks', 'efficientnet-lite0=nowhere.pth')
    assert done.returncode == 2
    assert 'efficientnet-lite0=nowhere.pth' in done.stderr
    assert 'NAME=CHECKPOINT' in done.stderr
