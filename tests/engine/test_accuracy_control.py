"""Bits are given back until little accuracy is lost, or all are."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from mmrazor_brecq.config.load import load_config
from mmrazor_brecq.engine import accuracy_control, ptq_loop
from mmrazor_brecq.engine.launch import ptq
from mmrazor_brecq.engine.launch import test as evaluate
from mmrazor_brecq.engine.max_drop import (
    TargetMissed,
    check_met,
    yardstick_of,
)
from mmrazor_brecq.engine.progress import Progress
from mmrazor_brecq.report.tables import path_lines

from .conftest import CONFIG, FLOAT, quick_config

W2A4 = {
    'test_cfg__calibration__num_images': 12,
    'test_dataloader__dataset__indices': 32,
    'model__quantization__weight__bits': 2,
    'mixed_precision': dict(
        reconstructor=dict(type='NearestRounding'),
        num_images=4,
        error=dict(type='FisherDiagError', draws=1),
    ),
}
TOP1 = 'accuracy/top1'


def run(folder, points, resume=False, **options):
    cfg = quick_config(folder, **{**W2A4, **options})
    cfg.model.reconstructor = dict(type='NearestRounding', batch_size=8)
    cfg.test_cfg.max_drop = points
    return ptq(cfg, FLOAT, resume)


@pytest.fixture(scope='module', autouse=True)
def few_widths():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(accuracy_control, 'WIDTHS', (8,))
        yield


@pytest.fixture(scope='module')
def controlled(tmp_path_factory, demo):
    """A run, killed in its second model and before the page is written."""
    folder = tmp_path_factory.mktemp('controlled')
    add = Progress.add_unit

    def killed(self, report, module):
        if self.folder.endswith('attempt2') and len(self.reports) == 3:
            raise KeyboardInterrupt
        add(self, report, module)

    def killed_at_the_page(*args):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Progress, 'add_unit', killed)
        with pytest.raises(KeyboardInterrupt):
            run(folder, 8.0)
    assert not (folder / 'report.json').exists()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ptq_loop, 'write', killed_at_the_page)
        with pytest.raises(KeyboardInterrupt):
            run(folder, 8.0, resume=True)
    metrics = run(folder, 8.0, resume=True)
    report = json.loads((folder / 'report.json').read_text())
    return folder, metrics, report


@pytest.mark.slow
def test_bits_are_given_back_until_it_holds(controlled):
    folder, metrics, report = controlled
    path = report['max_drop']
    first, *others = path['attempts']
    kept = path['attempts'][path['kept']]
    assert path['met'] and others[-1] == kept
    assert first['drop'] > 8 >= kept['drop'] and kept['reused'] >= 1
    assert report['quantized'] == metrics and metrics[TOP1] == kept['value']
    lost = report['float'][TOP1] - metrics[TOP1]
    assert kept['drop'] == pytest.approx(lost)
    bits = {k: v for unit in report['units'] for k, v in unit['bits'].items()}
    for layer, pair in kept['changed'].items():
        assert bits[layer] == pair != [2, 4]
    assert report['nearest'] == report['quantized']  # It is nearest rounding.
    assert not (folder / 'progress').exists()
    assert 'Accuracy control' in (folder / 'report.html').read_text()
    assert f'{TOP1} may fall by 8 points' in '\n'.join(path_lines(report))


@pytest.mark.slow
def test_the_config_in_the_folder_has_the_bits(controlled, tmp_path):
    folder, metrics, _ = controlled
    path = folder / Path(CONFIG).name
    cfg = load_config(str(path), {}, str(tmp_path / 'test'))
    assert evaluate(cfg, str(folder / 'quantized.pth')) == metrics
    assert cfg.model.quantization.bit_overrides


def test_a_missed_target_is_an_error():
    attempt = dict(value=90.0, drop=3.5)
    path = dict(metric=TOP1, points=0.5, up_to=8, kept=0, attempts=[attempt])
    with pytest.raises(TargetMissed, match=r'3\.50 points .* 0\.5 are .*max-'):
        check_met(dict(max_drop=dict(path, met=False)))
    check_met(dict(max_drop=dict(path, met=True)))
    check_met({})


def test_without_a_metric_it_is_refused(tmp_path, demo):
    cfg = quick_config(tmp_path / 'run')
    cfg.test_cfg.max_drop = 0.5
    cfg.test_evaluator = cfg.test_dataloader = None
    with pytest.raises(ValueError, match='needs a metric'):
        ptq(cfg, FLOAT)
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('points', [-1, float('nan'), 'half', True, [0.5]])
def test_a_wrong_number_of_points_is_refused(tmp_path, demo, points):
    cfg = quick_config(tmp_path)
    cfg.test_cfg.max_drop = points
    with pytest.raises(ValueError, match=r'max_drop'):
        ptq(cfg, FLOAT)


def test_points_are_those_of_the_metric():
    """Hundredths of a fraction; and an error has fallen if it is larger."""
    per_cent = yardstick_of('accuracy/top1', 93.5)
    assert per_cent.drop(93.0) == pytest.approx(0.5)
    fraction = yardstick_of('coco/bbox_mAP', 0.496)
    assert fraction.drop(0.486) == pytest.approx(1.0)
    error = yardstick_of('rmse', 0.5)
    assert error.drop(0.7) == pytest.approx(0.2)
    assert per_cent.drop(95.0) < 0 < per_cent.drop(math.nan) == math.inf
    with pytest.raises(ValueError, match='nan'):
        yardstick_of('accuracy/top1', math.nan)
