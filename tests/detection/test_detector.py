"""The demo's detector is quantized by the tool, and judged by its mAP."""

from __future__ import annotations

from pathlib import Path

import pytest

# `make venv` installs it.
pytest.importorskip('mmdet', reason='the extra [detection] is missing')

ROOT = Path(__file__).parents[2]
CONFIG = 'configs/detection/retinanet_fashion-detection.py'
CHECKPOINT = 'demo/retinanet_fashion-detection.pth'
#: Most that the mAP may fall: several times what it falls by.
LOSS = dict(w4a8=0.03, w2a8=0.12)


def test_the_checkpoint_is_small():
    assert (ROOT / CHECKPOINT).stat().st_size <= 4 * 2**20


@pytest.mark.slow
@pytest.mark.parametrize('bits', ['w4a8', 'w2a8'])
def test_the_detector_keeps_its_accuracy(bits, quantize, detection_set):
    report, told = quantize(
        CONFIG,
        CHECKPOINT,
        bits,
        'test_dataloader.dataset.ann_file=few.json',
        f'test_evaluator.ann_file={detection_set}/few.json',
    )
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
