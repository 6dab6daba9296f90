"""A network is quantized where no labeled images measure its accuracy."""

from __future__ import annotations

import json
import uuid

import pytest

from mmrazor_brecq.config.load import load_config
from mmrazor_brecq.engine.deploy import Request, export
from mmrazor_brecq.engine.launch import ptq
from mmrazor_brecq.engine.launch import test as evaluate
from mmrazor_brecq.engine.progress import Progress

from .conftest import CONFIG, FLOAT, QUICK
from .test_ptq import frozen, same

NO_TEST = dict(test_dataloader=None, test_evaluator=None)


def config(folder, **changes):
    options = {k: v for k, v in QUICK.items() if not k.startswith('test_data')}
    cfg = load_config(CONFIG, {**options, **NO_TEST, **changes}, str(folder))
    cfg.experiment_name = uuid.uuid4().hex
    return cfg


@pytest.fixture(scope='module')
def run(tmp_path_factory, demo):
    folder = tmp_path_factory.mktemp('run')
    assert ptq(config(folder), FLOAT) == {}
    return folder


def log_of(folder):
    return ''.join(path.read_text() for path in folder.glob('*/*.log'))


def test_the_weights_are_those_of_a_run_with_evaluation(run, quick, tmp_path):
    ptq(quick(), FLOAT)
    there = frozen(tmp_path / 'run/quantized.pth')
    assert same(frozen(run / 'quantized.pth'), there)


def test_the_report_says_that_no_accuracy_was_measured(run):
    report = json.loads((run / 'report.json').read_text())
    assert report['float'] == report['nearest'] == report['quantized'] == {}
    far = report['divergence']
    assert 0 < far['quantized'] < far['nearest']
    table = log_of(run)
    assert 'The accuracy was not measured' in table
    assert f'{far["quantized"]:.3g} with BRECQ' in ' '.join(table.split())
    assert 'accuracy/top1' not in table and 'Evaluates' not in table


def test_the_classes_are_those_of_the_calibration_images(run):
    from mmrazor_brecq.checkpoint import read_checkpoint

    meta = read_checkpoint(str(run / 'quantized.pth'))['meta']
    assert meta['classes'][0] == 'T-shirt/top'


def test_a_killed_run_is_resumed_with_the_same_bits(
    run, tmp_path, monkeypatch
):
    add_unit = Progress.add_unit

    def interrupted(self, *args):
        if len(self.reports) == 4:
            raise KeyboardInterrupt
        add_unit(self, *args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Progress, 'add_unit', interrupted)
        ptq(config(tmp_path), FLOAT)
    assert ptq(config(tmp_path), FLOAT, resume=True) == {}
    assert same(
        frozen(run / 'quantized.pth'), frozen(tmp_path / 'quantized.pth')
    )
    # A run that is done is not done again.
    done = (tmp_path / 'quantized.pth').stat().st_mtime_ns
    assert ptq(config(tmp_path), FLOAT, resume=True) == {}
    assert (tmp_path / 'quantized.pth').stat().st_mtime_ns == done


def test_the_export_is_proven_on_calibration_images(run, tmp_path):
    pytest.importorskip('onnxruntime')
    request = Request(images=16, output=str(tmp_path / 'a.onnx'))
    report = export(config(run), str(run / 'quantized.pth'), request)
    assert report['matches'][0]['images'] == 16
    assert (tmp_path / 'a.onnx').exists()


def test_an_evaluation_of_it_asks_for_test_images(run):
    with pytest.raises(ValueError, match='no `test_evaluator`.*--no-eval'):
        evaluate(config(run), str(run / 'quantized.pth'))
