"""The demo's segmenter is quantized by the tool, and judged by its mIoU."""

from __future__ import annotations

from pathlib import Path

import pytest

# `make venv` installs it.
pytest.importorskip('mmseg', reason='the extra [segmentation] is missing')

ROOT = Path(__file__).parents[2]
CONFIG = 'configs/segmentation/deeplabv3plus_fashion-detection.py'
CHECKPOINT = 'demo/deeplabv3plus_fashion-detection.pth'


def test_the_checkpoint_is_small():
    assert (ROOT / CHECKPOINT).stat().st_size <= 2 * 2**20


@pytest.mark.slow
def test_the_segmenter_keeps_its_accuracy(quantize):
    report, told = quantize(
        CONFIG,
        CHECKPOINT,
        'w2a8',
        'test_dataloader.dataset.indices=50',
        'model.reconstructor.iterations=24',
        images=32,
    )
    mean = {
        name: report[name]['mIoU']
        for name in ('float', 'nearest', 'quantized')
    }
    assert mean['float'] > 50
    # Twice what it falls by.
    assert mean['float'] - mean['quantized'] < 15
    assert mean['quantized'] - mean['nearest'] > 20
    assert 'judged by mIoU' in told
    # Each pixel is one of the classes.
    named = {unit['objective'] for unit in report['units']}
    assert all('Categorical on axis 1' in name for name in named)
    assert report['units'][-1]['name'] == 'decode_head.conv_seg'
