"""Runs are resumed with the same bits, and overwrite nothing."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from mmrazor_brecq.checkpoint import read_checkpoint
from mmrazor_brecq.engine.launch import ptq, test
from mmrazor_brecq.engine.progress import Progress
from mmrazor_brecq.functional import integer_range
from mmrazor_brecq.runtime import autocast

from .conftest import CONFIG, FLOAT, QUICK, ROOT, quick_config

evaluate = test
del test  # or pytest takes it for a test


def frozen(path):
    return read_checkpoint(str(path))['state_dict']


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope='module')
def finished(tmp_path_factory, demo):
    """Return folder and metrics of a run without interruption."""
    folder = tmp_path_factory.mktemp('finished')
    return folder, ptq(quick_config(folder), FLOAT)


def test_hooks_of_training_do_not_replace_weights(finished, quick, tmp_path):
    """EMAHook would evaluate averages of the float weights."""
    folder, metrics = finished
    cfg = quick()
    cfg.custom_hooks = [dict(type='EMAHook')]
    assert ptq(cfg, FLOAT) == metrics
    assert same(
        frozen(folder / 'quantized.pth'),
        frozen(tmp_path / 'run' / 'quantized.pth'),
    )


def test_a_run_writes_a_report_a_checkpoint_and_curves(finished):
    folder, metrics = finished
    report = json.loads((folder / 'report.json').read_text())
    for model in ('float', 'nearest', 'quantized'):
        assert 0 <= report[model]['accuracy/top1'] <= 100
    assert report['quantized'] == metrics
    assert set(report['seconds']) == {
        'prepare',
        'nearest',
        'reconstruct',
        'evaluate',
        'report',
        'total',
    }
    assert report['peak_memory_mb'] > 0
    text = (folder / 'report.html').read_text()
    assert 'accuracy/top1' in text and 'backbone.layer4.1' in text
    assert [len(layer['input']['counts']) for layer in report['layers']] == (
        [64] * 21
    )
    far = report['divergence']
    assert 0 < far['quantized'] < far['nearest']
    assert report['weight_bytes']['quantized'] < (
        report['weight_bytes']['float'] / 6
    )
    assert report['account'] == dict(
        summary='21 of 21 layers quantized',
        quantized=21,
        layers=21,
        products=0,
        quantized_products=0,
        left_float={},
    )
    assert len(report['units']) == 10
    layers = [name for unit in report['units'] for name in unit['layers']]
    assert len(layers) == len(set(layers)) == 21
    for unit in report['units']:
        assert set(unit['bits']) == set(unit['layers'])
        assert unit['accepted'] or unit['after'] >= unit['before']
    (scalars,) = folder.glob('*/vis_data/scalars.json')
    curves = [
        key
        for line in scalars.read_text().splitlines()
        for key in json.loads(line)
        if key.startswith('loss/')
    ]
    learned = [u for u in report['units'] if 'negligible' not in u['note']]
    assert {f'loss/{unit["name"]}' for unit in learned} == set(curves)
    assert len(learned) > 5
    assert not (folder / 'progress').exists()


def test_the_checkpoint_has_integers_within_their_bits(finished):
    folder, _ = finished
    path = folder / 'quantized.pth'
    assert torch.load(path, weights_only=True)['data'].dtype == torch.uint8
    content = read_checkpoint(str(path))
    state = content['state_dict']
    weights = [k for k in state if k.endswith('weight_quantizer.bits')]
    assert len(weights) == 21
    for key in weights:
        weight = state[key.replace('_quantizer.bits', '')]
        low, high = integer_range(int(state[key]), signed=True)
        assert weight.dtype == torch.int8
        assert low <= weight.min() and weight.max() <= high
    assert content['meta']['classes'][0] == 'T-shirt/top'


def test_the_checkpoint_has_the_same_metrics(finished, quick):
    folder, metrics = finished
    again = evaluate(quick('again'), str(folder / 'quantized.pth'))
    assert again == metrics


def test_a_checkpoint_of_another_scheme_is_refused(finished, quick):
    folder, _ = finished
    cfg = quick('again', model__quantization__activation__symmetric=True)
    with pytest.raises(ValueError, match='quantization.activation'):
        evaluate(cfg, str(folder / 'quantized.pth'))


def test_a_broken_progress_file_is_named(quick, tmp_path):
    progress = tmp_path / 'run/progress'
    progress.mkdir(parents=True)
    (progress / 'run.json').write_text('{"identity"')
    with pytest.raises(ValueError, match='run.json is broken'):
        ptq(quick(), FLOAT, resume=True)


def test_the_same_seed_gives_the_same_bits(finished, quick, tmp_path):
    folder, _ = finished
    ptq(quick('same'), FLOAT)
    ptq(quick('other', randomness__seed=1), FLOAT)
    first = frozen(folder / 'quantized.pth')
    assert same(first, frozen(tmp_path / 'same/quantized.pth'))
    assert not same(first, frozen(tmp_path / 'other/quantized.pth'))


def interrupt(monkeypatch, cfg, finished_units):
    """Interrupt a run after some finished units."""
    add_unit = Progress.add_unit

    def interrupted(self, *args):
        if len(self.reports) == finished_units:
            raise KeyboardInterrupt
        add_unit(self, *args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Progress, 'add_unit', interrupted)
        ptq(cfg, FLOAT)


@pytest.mark.parametrize('finished_units', [1, 9])
def test_a_resumed_run_has_the_same_bits(
    finished, quick, tmp_path, monkeypatch, finished_units
):
    folder, metrics = finished
    interrupt(monkeypatch, quick('killed'), finished_units)
    assert not (tmp_path / 'killed/quantized.pth').exists()
    assert ptq(quick('killed'), FLOAT, resume=True) == metrics
    assert same(
        frozen(folder / 'quantized.pth'),
        frozen(tmp_path / 'killed/quantized.pth'),
    )
    report = json.loads((tmp_path / 'killed/report.json').read_text())
    assert len(report['units']) == 10
    # Histograms and curves of the units before it are still there.
    whole = json.loads((folder / 'report.json').read_text())
    assert report['layers'] == whole['layers']
    for one, other in zip(report['units'], whole['units']):
        assert one['losses'] == other['losses'] and one['cost'] is not None


def test_a_finished_run_without_its_page_gets_one(finished, quick):
    folder, metrics = finished
    written = (folder / 'report.html').read_text()
    (folder / 'report.html').unlink()
    assert ptq(quick_config(folder), FLOAT, resume=True) == metrics
    assert (folder / 'report.html').read_text() == written


def test_a_resumed_run_keeps_its_low_precision_type(
    quick, tmp_path, monkeypatch
):
    def config(low_precision_seconds):
        seconds = {None: 1.0, torch.bfloat16: low_precision_seconds}
        monkeypatch.setattr(autocast, '_seconds', lambda *x: seconds[x[-1]])
        return quick(model__reconstructor__autocast='fastest')

    interrupt(monkeypatch, config(0.5), 1)
    ptq(config(2.0), FLOAT, resume=True)
    report = json.loads((tmp_path / 'run/report.json').read_text())
    assert {unit['autocast'] for unit in report['units']} == {'bfloat16'}


@pytest.mark.parametrize(
    'change',
    [
        dict(model__quantization__weight__bits=3),
        dict(test_dataloader__dataset__indices=32),
        dict(seed=1),
        None,
    ],
)
def test_resuming_another_run_is_refused(quick, tmp_path, monkeypatch, change):
    def interrupted(self, *args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Progress, 'add_unit', interrupted)
        ptq(quick(), FLOAT)
    checkpoint, what = FLOAT, 'config'
    if change is None:
        state = torch.load(FLOAT, weights_only=True)
        state['head.fc.bias'] += 1
        checkpoint, what = str(tmp_path / 'other.pth'), 'checkpoint'
        torch.save(state, checkpoint)
    elif 'seed' in change:
        change = dict(randomness__seed=1)
    before = (tmp_path / 'run/progress/run.json').read_text()
    with pytest.raises(ValueError, match=f'--resume.*another {what}') as info:
        ptq(quick(**change or {}), checkpoint, resume=True)
    for key, value in (change or {}).items():
        key = key.replace('__', '.')
        assert re.search(rf'{key} was .*, and is {value}\W', str(info.value))
    assert (tmp_path / 'run/progress/run.json').read_text() == before


def files(folder):
    """Return the content of each file in a folder, without subfolders."""
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


@pytest.mark.parametrize(
    'change, words',
    [
        ({'model__quantization__weight__bits': 3}, 'bits was 4, and is 3'),
        ({'randomness__seed': 1}, 'randomness.seed was 0, and is 1'),
        (
            {'test_cfg__calibration__num_images': 16},
            'num_images was 24, and is 16',
        ),
        (
            {'test_evaluator': dict(type='Accuracy', topk=1)},
            'test_evaluator.topk',
        ),
    ],
)
def test_a_finished_run_is_not_resumed_with_other_options(
    finished, quick, tmp_path, change, words
):
    """Nothing is renamed, and the message has what differs."""
    folder = tmp_path / 'run'
    shutil.copytree(finished[0], folder)
    before = files(folder)
    with pytest.raises(ValueError, match=f'--resume.*finished.*{words}'):
        ptq(quick(**change), FLOAT, resume=True)
    assert files(folder) == before


def test_a_config_in_the_folder_of_a_run_is_never_executed(
    finished, quick, tmp_path
):
    folder = tmp_path / 'run'
    shutil.copytree(finished[0], folder)
    (config,) = folder.glob('*.py')
    config.write_text(f'open({str(tmp_path / "sprung")!r}, "w")\nmodel = 1\n')
    with pytest.raises(ValueError, match='had another config'):
        ptq(quick(randomness__seed=1), FLOAT, resume=True)
    assert not (tmp_path / 'sprung').exists()


def test_another_run_is_resumed_beside_one_that_is_finished(
    finished, quick, tmp_path, monkeypatch
):
    folder = tmp_path / 'run'
    shutil.copytree(finished[0], folder)
    interrupt(monkeypatch, quick(randomness__seed=1), 2)
    ptq(quick(randomness__seed=1), FLOAT, resume=True)
    assert (folder / 'quantized.1.pth').exists()


def test_a_second_run_overwrites_nothing(finished, quick, tmp_path):
    folder = tmp_path / 'run'
    shutil.copytree(finished[0], folder)
    before = frozen(folder / 'quantized.pth')
    ptq(quick(randomness__seed=1), FLOAT)
    assert same(before, frozen(folder / 'quantized.1.pth'))
    assert not same(before, frozen(folder / 'quantized.pth'))
    assert (folder / 'report.1.json').exists()


def test_a_small_memory_budget_changes_no_bit(finished, quick, tmp_path):
    folder, _ = finished
    ptq(quick(test_cfg__calibration__memory='1kB'), FLOAT)

    run = tmp_path / 'run'
    assert same(
        frozen(run / 'quantized.pth'), frozen(folder / 'quantized.pth')
    )
    in_memory, in_files = (
        json.loads((f / 'report.json').read_text())['activations_mb']
        for f in (folder, run)
    )
    assert in_memory['spilled'] == 0 < in_memory['held']
    assert in_files['held'] == 0 < in_files['spilled']
    assert {x.suffix for x in run.iterdir() if x.is_file()} <= {
        '.html',
        '.pth',
        '.json',
        '.py',
    }


@pytest.mark.parametrize(
    'options, message',
    [
        (
            dict(model__quantization__weight__bits=9),
            'weight.bits=9.*2 to 8',
        ),
        (
            dict(model__quantization__activation__bits=1),
            'activation.bits=1.*2 to 8',
        ),
        (
            dict(model__quantization__bit_overrides={'backbone.conv9': 4}),
            "'backbone.conv9' in `bit_overrides` matches no layer",
        ),
        (
            dict(test_cfg__calibration__num_images=1),
            'num_images=1, expected 2 or more',
        ),
        (
            dict(test_cfg__calibration__num_images=0),
            'num_images=0, expected 2 or more',
        ),
        (dict(model__held_out=0), 'held_out=0'),
        (
            dict(test_cfg__calibration__memroy='1GiB'),
            'calibration.memroy is an unknown key, .* memory',
        ),
        (dict(test_cfg__calibration__memory='1 potato'), "memory='1 potato'"),
        (dict(test_cfg__calibration__memory=1.5), 'memory=1.5, .* up to 1'),
    ],
)
def test_mistakes_are_refused_before_any_work(
    quick, tmp_path, options, message
):
    with pytest.raises(ValueError, match=message):
        ptq(quick(**options), FLOAT)
    assert not (tmp_path / 'run/progress/run.json').exists()


def test_images_with_nan_are_refused(quick):
    cfg = quick(
        model__data_preprocessor=dict(
            type='mmcls.ClsDataPreprocessor',
            mean=[0.0] * 3,
            std=[float('nan')] * 3,
        )
    )
    cfg.model.architecture.data_preprocessor = cfg.model.pop(
        'data_preprocessor'
    )
    cfg.data_preprocessor = None
    with pytest.raises(ValueError, match='image 0 contains NaN'):
        ptq(cfg, FLOAT)


def test_calibration_on_test_images_gives_a_warning(quick, caplog, tmp_path):
    cfg = quick()
    cfg.test_cfg.calibration.dataloader.dataset.update(
        images='t10k-images-idx3-ubyte.gz', labels='t10k-labels-idx1-ubyte.gz'
    )
    ptq(cfg, FLOAT)
    (log,) = (tmp_path / 'run').glob('*/*.log')
    assert '24 of the 24 calibration images are test images' in (
        log.read_text()
    )


def test_a_shorter_run_that_ended_nearer_to_float_is_logged(
    finished, quick, tmp_path
):
    folder, _ = finished
    report = json.loads((folder / 'report.json').read_text())
    del report['checksum']  # That of the report without the changes.
    far = report['divergence']['quantized']
    report['divergence']['quantized'] = far / 4
    for unit in report['units']:
        unit['seconds'] = 0.001
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run/report.json').write_text(json.dumps(report))
    (tmp_path / 'run/report.1.json').write_text('{"divergence": ')

    ptq(quick(model__reconstructor__iterations=3), FLOAT)

    log = next((tmp_path / 'run').glob('*/*.log')).read_text()
    assert f'came to {far / 4:.3g} (report.2.json)' in log
    kept = json.loads((tmp_path / 'run/report.2.json').read_text())
    assert kept == report
    log = min(folder.glob('*/*.log')).read_text()
    assert 'the longer one is the worse one' not in log


def test_other_calibration_images_give_no_warning(finished):
    folder, _ = finished
    log = min(folder.glob('*/*.log'))  # That of the run, not of a resumed one.
    assert 'are test images' not in log.read_text()


@pytest.mark.slow
def test_a_killed_run_can_be_resumed(tmp_path):
    """It has the same bits as a run that was not killed."""
    env = dict(os.environ, MMRAZOR_BRECQ_DEMO=str(ROOT / 'demo'))

    def command(work_dir):
        return [
            *(sys.executable, str(ROOT / 'tools/ptq.py'), CONFIG, FLOAT),
            *('--work-dir', str(tmp_path / work_dir)),
            *('--cfg-options', *(f'{k}={v}' for k, v in QUICK.items())),
        ]

    subprocess.run(command('alone'), env=env, check=True)
    progress = tmp_path / 'killed/progress'
    run = subprocess.Popen(command('killed'), env=env)
    while not (progress / '0003.pth').exists():
        assert run.poll() is None, 'ended before it could be killed'
        time.sleep(0.01)
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert len(Progress(str(progress), {}, True).reports) in (3, 4)
    subprocess.run([*command('killed'), '--resume'], env=env, check=True)
    assert same(
        frozen(tmp_path / 'alone/quantized.pth'),
        frozen(tmp_path / 'killed/quantized.pth'),
    )


def test_if_there_are_fewer_images_a_run_uses_all(quick, tmp_path, demo):
    cfg = quick(
        test_cfg__calibration__dataloader__dataset__indices=40,
        test_cfg__calibration__num_images=1024,
    )
    ptq(cfg, FLOAT)
    report = json.loads((tmp_path / 'run/report.json').read_text())
    assert report['units']
    log = next((tmp_path / 'run').glob('*/*.log')).read_text()
    assert 'num_images=1024' in log
    assert 'has 40 images: all of them are used' in log


def test_a_single_calibration_image_is_refused(quick):
    cfg = quick(
        test_cfg__calibration__dataloader__dataset__indices=1,
        test_cfg__calibration__num_images=1024,
    )
    with pytest.raises(ValueError, match='has 1, expected 2 or more'):
        ptq(cfg, FLOAT)
