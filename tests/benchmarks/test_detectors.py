"""Detectors of mmdet are quantized, saved and loaded as the table says."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import mmrazor_brecq

pytest.importorskip('mmdet', reason='the extra [detection] is missing')

ROOT = Path(__file__).parents[2]
CONFIGS = Path(find_spec('mmdet').origin).parent / '.mim/configs'


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / 'benchmarks'))
    import detectors

    yield detectors
    sys.modules.pop('detectors')


def test_every_case_has_its_config_and_its_row_in_the_page(script):
    page = (ROOT / 'docs/guides/detection.md').read_text()
    for name, case in script.CASES.items():
        assert (CONFIGS / case.config).is_file()
        assert f'| {name} |' in page


@pytest.mark.slow
def test_one_with_queries_passes(script, warnings_log):
    found = script.measure('DETR')
    assert found['equal']
    assert found['account']['quantized'] == 52
    assert len(found['units']) == 18
    assert not any('depends on the images beside' in x for x in warnings_log)


@pytest.mark.slow
def test_operators_that_are_missing_are_named(script):
    with pytest.raises(
        NotImplementedError, match='deform_conv_forward of mmcv.ops.*build'
    ):
        script.measure('Faster R-CNN with DCN')


@pytest.mark.slow
def test_a_head_that_mixes_images_is_refused_with_its_cure(script):
    case = script.CASES['Conditional DETR']
    with pytest.raises(ValueError, match=r"bbox_head.*bit_overrides=\{'"):
        mmrazor_brecq.quantize(
            script.build(case),
            torch.randn(6, 3, 32, 32),
            reconstructor=dict(type='NearestRounding', batch_size=2),
        )
