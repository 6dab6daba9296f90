"""The demo's detector is quantized by the tool, and judged by its mAP."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# `make venv` installs it.
pytest.importorskip('mmdet', reason='the extra [detection] is missing')

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / 'configs/detection/retinanet_fashion-detection.py'
CHECKPOINT = ROOT / 'demo/retinanet_fashion-detection.pth'
#: Most that the mAP may fall: several times what it falls by.
LOSS = dict(w4a8=0.03, w2a8=0.12)


def quantize(bits, detection_set, folder):
    """Run the tool; return the report, and what it told."""
    run = subprocess.run(
        [
            *(sys.executable, ROOT / 'tools/ptq.py', CONFIG, CHECKPOINT),
            *('--recipe', bits, '--schedule', 'fast', '--num-images', '64'),
            *('--calibration', detection_set / 'calibration'),
            *('--work-dir', folder, '--cfg-options'),
            'test_dataloader.dataset.ann_file=few.json',
            f'test_evaluator.ann_file={detection_set}/few.json',
        ],
        env=dict(
            os.environ,
            PYTHONPATH=str(ROOT),
            OMP_NUM_THREADS='1',
            MMRAZOR_BRECQ_DETECTION=str(detection_set),
        ),
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    report = json.loads((folder / 'report.json').read_text())
    return report, run.stdout + run.stderr


def test_the_checkpoint_is_small():
    assert CHECKPOINT.stat().st_size <= 4 * 2**20


@pytest.mark.slow
@pytest.mark.parametrize('bits', ['w4a8', 'w2a8'])
def test_the_detector_keeps_its_accuracy(bits, detection_set, tmp_path):
    report, told = quantize(bits, detection_set, tmp_path)
    mean = {
        name: report[name]['coco/bbox_mAP']
        for name in ('float', 'nearest', 'quantized')
    }
    assert mean['float'] > 0.4
    assert mean['float'] - mean['quantized'] < LOSS[bits]
    if bits == 'w2a8':
        assert mean['quantized'] - mean['nearest'] > 0.2
    assert 'judged by coco/bbox_mAP' in told
    named = {unit['objective'] for unit in report['units']}
    assert any('Gaussian where an object is likely' in x for x in named)
    # The head's layers serve both levels, and learn on both.
    head = report['units'][-1]
    assert head['name'] == 'bbox_head' and head['accepted']


def test_boxes_of_the_composed_set_lie_on_their_canvas(detection_set):
    content = json.loads((detection_set / 'test.json').read_text())
    assert len(content['images']) == 400 and len(content['categories']) == 10
    for box in content['annotations']:
        x, y, width, height = box['bbox']
        assert min(x, y) >= 0 < min(width, height)
        assert max(x + width, y + height) <= 96
    classes = {box['category_id'] for box in content['annotations']}
    assert classes == set(range(10))
