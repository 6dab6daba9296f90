"""The benchmark of detectors composes what its rows are called."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pytest

pytest.importorskip('mmdet', reason='the extra [detection] is missing')
pytest.importorskip('onnx', reason='the extra [deploy] is missing')

ROOT = Path(__file__).parents[2]


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / 'benchmarks'))
    import detection

    yield detection
    for name in ('detection', 'quantize', 'accuracy'):
        sys.modules.pop(name)


def test_a_row_has_its_bits_schedule_and_placement(script, tmp_path):
    args = argparse.Namespace(
        folder='data', num_images=9, seed=3, cfg_options={}
    )

    def row(*settings):
        return script.configure(args, 'yolox-nano', *settings, str(tmp_path))

    ours = row('w4a8', 'fast', 'ours')
    assert ours.model.quantization['weight']['bits'] == 4
    assert ours.model.reconstructor['iterations'] == 24
    assert ours.test_cfg.calibration['num_images'] == 9
    loader = ours.test_cfg.calibration.dataloader
    assert loader.dataset.data_prefix.img == 'train2017'
    theirs = row('w4a8', 'nearest', 'qdrop')
    assert theirs.model.quantization['weight']['bits'] == 4
    assert theirs.model.quantization['bit_overrides']['*head.*'] is None
    assert theirs.model.reconstructor == dict(type='NearestRounding')
