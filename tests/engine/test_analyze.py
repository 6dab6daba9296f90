"""The analysis of single layers: whole, continued, and with clear refusals."""

from __future__ import annotations

import json

import pytest

from mmrazor_brecq.analysis import SingleLayers
from mmrazor_brecq.engine.analyze_run import _earlier, analyze
from mmrazor_brecq.engine.launch import ptq

from .conftest import FLOAT, quick_config

SMALL = dict(
    test_cfg__calibration__num_images=12, test_dataloader__dataset__indices=32
)
FEW = dict(images=2)


def killed_after(count):
    """Return a context in which an analysis is killed after some layers."""
    patch, seen, measure = pytest.MonkeyPatch(), [], SingleLayers.__call__

    def some(self, name):
        if len(seen) == count:
            raise KeyboardInterrupt
        seen.append(name)
        return measure(self, name)

    patch.setattr(SingleLayers, '__call__', some)
    return patch, seen


@pytest.fixture(scope='module')
def analyzed(tmp_path_factory, demo):
    """Folder of an analysis that was killed after three layers and goes on."""
    folder = tmp_path_factory.mktemp('analyzed')
    patch, first = killed_after(3)
    with pytest.raises(KeyboardInterrupt):
        analyze(quick_config(folder, **SMALL), FLOAT, **FEW)
    patch.undo()
    patch, rest = killed_after(10**6)
    content = analyze(quick_config(folder, **SMALL), FLOAT, **FEW)
    patch.undo()
    return folder, content, first, rest


def test_a_killed_analysis_goes_on_after_the_last_layer(analyzed):
    folder, content, first, rest = analyzed
    names = [row['name'] for row in content['layers']]
    assert first + rest == names and len(names) == len(set(names)) == 21
    saved = json.loads((folder / 'analysis.json').read_text())
    assert saved['layers'] == content['layers']
    assert content['images'] == 1  # A tenth of the images is held out.
    costs = {row['name']: row['alone'] for row in content['layers']}
    assert content['ranking'] == sorted(names, key=costs.get, reverse=True)
    assert '<h1>Analysis of layers' in (folder / 'analysis.html').read_text()
    assert not list(folder.glob('*.lock'))


def test_another_analysis_keeps_the_one_before(analyzed, tmp_path):
    """Of another network, or damaged, in the same folder: it is renamed."""
    text = (analyzed[0] / 'analysis.json').read_text()
    path, kept = tmp_path / 'analysis.json', tmp_path / 'analysis.1.json'
    path.write_text(text)
    identity = analyzed[1]['identity']
    assert _earlier(str(path), identity)['layers'] == analyzed[1]['layers']
    assert _earlier(str(path), dict(identity, config='other')) is None
    assert kept.read_text() == text and not path.exists()
    path.write_text(text.replace('alone', 'along', 1))
    assert _earlier(str(path), identity) is None
    assert 'along' in (tmp_path / 'analysis.2.json').read_text()


@pytest.mark.slow
def test_a_quantized_checkpoint_finds_its_float_weights(tmp_path, demo):
    cfg = quick_config(tmp_path, **SMALL)
    cfg.model.reconstructor = dict(type='NearestRounding', batch_size=8)
    ptq(cfg, FLOAT)
    path = str(tmp_path / 'quantized.pth')

    def again(folder=tmp_path, checkpoint=path, **kwargs):
        return analyze(quick_config(folder, **SMALL), checkpoint, **kwargs)

    content = again(evaluations=1)
    worst, *others = (
        next(row for row in content['layers'] if row['name'] == name)
        for name in content['ranking']
    )
    assert set(worst['metrics']) == {'alone', 'left_out'}
    assert not any('metrics' in row for row in others)
    report = json.loads((tmp_path / 'report.json').read_text())
    for row in 'float', 'quantized':
        assert content[row] == report[row]
    nats = report['divergence']['quantized']
    assert content['divergence'] == pytest.approx(nats)
    elsewhere = tmp_path / 'alone.pth'
    elsewhere.write_bytes((tmp_path / 'quantized.pth').read_bytes())
    (tmp_path / 'report.json').rename(tmp_path / 'other.json')
    with pytest.raises(ValueError, match='with --teacher'):
        again(tmp_path / 'a', str(elsewhere))
    with pytest.raises(ValueError, match='leave it out'):
        again(tmp_path / 'a', FLOAT, teacher=FLOAT)
    with pytest.raises(ValueError, match='quantized already'):
        again(tmp_path / 'a', path, teacher=path)
    assert not (tmp_path / 'a').exists()
