"""Searches write configs with bits, for the demo's ResNet-18."""

from __future__ import annotations

import csv
import json
import re

import pytest
from mmengine.config import Config

from mmrazor_brecq.config.load import load_config
from mmrazor_brecq.engine import search_run as bit_search
from mmrazor_brecq.engine import sensitivity_run as engine_sensitivity
from mmrazor_brecq.engine.latency_run import write_latency_table
from mmrazor_brecq.engine.launch import ptq
from mmrazor_brecq.engine.search_run import search_bits
from mmrazor_brecq.engine.sensitivity_run import MixedPrecision

from .conftest import CONFIG, FLOAT, QUICK, quick_config

SPACE = {
    'mixed_precision.reconstructor': dict(type='NearestRounding'),
    'mixed_precision.bits': [2, 4, 8],
    'mixed_precision.num_images': 12,
    'mixed_precision.error': dict(type='FisherError', draws=1),
}
EQUAL = dict(equal_to=['w4'], changed=True)


def config(folder, **options):
    return quick_config(folder, **{**SPACE, **options})


@pytest.fixture(scope='module', autouse=True)
def short_front():
    """Reduce the points of the front in a figure."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bit_search, 'FRONT_POINTS', 4)
        yield


@pytest.fixture(scope='module')
def searched(tmp_path_factory, demo, short_front):
    """Return folder and configs of a search."""
    folder = tmp_path_factory.mktemp('searched')
    paths = search_bits(
        config(folder),
        CONFIG,
        FLOAT,
        ['weight_bytes<=0.5MB', 'weight_bytes<=1MB,bops<=1.5G'],
        **EQUAL,
    )
    return folder, paths


@pytest.fixture
def again(searched, tmp_path):
    """Return a function that searches with known sensitivities."""
    folder, _ = searched

    def search(*budgets, equal_to=(), **options):
        path = tmp_path / 'sensitivity.json'
        path.write_bytes((folder / 'sensitivity.json').read_bytes())
        return search_bits(
            config(tmp_path / 'run', **options),
            CONFIG,
            FLOAT,
            budgets,
            equal_to,
            str(path),
            changed=True,
        )

    return search


def test_the_results_meet_the_budgets(searched):
    folder, paths = searched
    content = json.loads((folder / 'search.json').read_text())
    half, both, w4 = content['found']
    assert half['costs']['weight_bytes'] <= 0.5e6
    assert both['costs']['weight_bytes'] <= 1e6
    assert both['costs']['bops'] <= 1.5e9
    (uniform,) = (u for u in content['uniform'] if u['bits'] == 4)
    assert w4['limits']['weight_bytes'] == uniform['costs']['weight_bytes']
    assert w4['loss'] <= uniform['loss']
    assert max(found['gap'] for found in content['found']) <= 1e-6
    assert len(paths) == len(set(paths)) == 3


def test_the_front_falls_and_no_uniform_model_is_below_it(searched):
    folder, _ = searched
    content = json.loads((folder / 'search.json').read_text())
    points = [
        (f['costs']['weight_bytes'], f['loss']) for f in content['front']
    ]
    assert points == sorted(points)
    losses = [loss for _, loss in points]
    assert losses == sorted(losses, reverse=True)
    for uniform in content['uniform']:
        for size, loss in points:
            smaller = uniform['costs']['weight_bytes'] <= size
            assert not (smaller and uniform['loss'] < loss * (1 - 1e-6))


def test_a_search_writes_figures_and_a_table(searched):
    folder, _ = searched
    for name in ('sensitivity', 'front', 'depth'):
        assert (folder / f'{name}.png').read_bytes()[:4] == b'\x89PNG'
    (log,) = folder.glob('*/*.log')
    text = log.read_text()
    assert 'backbone.layer4.1.conv2' in text and 'at most 0.00%' in text


@pytest.mark.slow
def test_a_written_config_can_be_quantized(searched, tmp_path):
    folder, paths = searched
    cfg = load_config(paths[0], {}, str(tmp_path / 'ptq'))
    assert cfg.model.reconstructor.iterations == 2  # From the command line.
    cfg.model.reconstructor = dict(type='NearestRounding', batch_size=8)
    ptq(cfg, FLOAT)
    report = json.loads((tmp_path / 'ptq/report.json').read_text())
    found = json.loads((folder / 'search.json').read_text())['found'][0]
    bits = {k: v for unit in report['units'] for k, v in unit['bits'].items()}
    assert bits == found['bits']
    size = report['weight_bytes']['quantized']
    assert size == found['costs']['weight_bytes'] <= 0.5e6


@pytest.mark.slow
def test_a_written_config_inherits_the_file_of_the_user(
    again, searched, tmp_path
):
    """Its overrides are replaced, not merged."""
    folder, _ = searched
    mine = tmp_path / 'mine/config.py'
    mine.parent.mkdir()
    mine.write_text(
        f'_base_ = {CONFIG!r}\n'
        "model = dict(quantization=dict(bit_overrides={'backbone.layer1.*':"
        " 4, 'head.fc': dict(weight=8)}))\n"
    )
    options = {**QUICK, **SPACE}
    cfg = load_config(str(mine), options, str(tmp_path / 'out'))
    (path,) = search_bits(cfg, str(mine), FLOAT, ['weight_bytes<=0.6MB'])
    text = open(path).read()
    assert "_base_ = '../mine/config.py'" in text
    overrides = Config.fromfile(path).model.quantization.bit_overrides
    assert overrides['head.fc'] == dict(weight=8, activation=8)
    assert overrides['backbone.layer1.0.conv1'] == dict(weight=4, activation=4)
    assert 'backbone.layer1.*' not in overrides
    assert '_delete_' not in overrides
    bits = {value['weight'] for value in overrides.values()}
    assert bits <= {2, 4, 8} and len(bits) > 1


def test_constraints_need_no_new_measurement(again, tmp_path):
    (path,) = again(
        'weight_bytes<=0.6MB',
        **{
            'mixed_precision.allowed': {'*layer[!4]*': [4, 8], '*layer4*': 2},
            'mixed_precision.shared': [['*layer3.0*'], ['*layer3.1*']],
        },
    )
    bits = Config.fromfile(path).model.quantization.bit_overrides
    for name, value in bits.items():
        assert value['weight'] in ((2,) if 'layer4' in name else (4, 8))
    groups = [
        {v['weight'] for k, v in bits.items() if group in k}
        for group in ('layer3.0', 'layer3.1')
    ]
    assert [len(group) for group in groups] == [1, 1]
    assert not list((tmp_path / 'run').glob('*progress*'))


@pytest.mark.slow
def test_the_genetic_search_is_not_better(again, searched, tmp_path):
    again(
        'weight_bytes<=0.5MB',
        **{'mixed_precision.searcher': dict(type='GeneticSearch')},
    )
    found = [
        json.loads((folder / 'search.json').read_text())['found'][0]
        for folder in (searched[0], tmp_path / 'run')
    ]
    assert found[1]['gap'] is None
    assert found[0]['loss'] <= found[1]['loss']


@pytest.mark.slow
def test_a_killed_search_can_be_resumed(searched, tmp_path, monkeypatch):
    """It is killed in a reconstruction, and then in a measurement."""
    folder = tmp_path / 'killed'
    add_unit, add = (
        engine_sensitivity.Progress.add_unit,
        engine_sensitivity.SensitivityFile.add,
    )
    counts = dict(units=0, measured=0)

    def killed_unit(self, *args):
        counts['units'] += 1
        if counts['units'] == 14:
            raise KeyboardInterrupt
        add_unit(self, *args)

    def killed_measure(self, *args):
        counts['measured'] += 1
        if counts['measured'] == 4:
            raise KeyboardInterrupt
        add(self, *args)

    monkeypatch.setattr(engine_sensitivity.Progress, 'add_unit', killed_unit)
    monkeypatch.setattr(
        engine_sensitivity.SensitivityFile, 'add', killed_measure
    )
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            search_bits(config(folder), CONFIG, FLOAT, **EQUAL)
    search_bits(config(folder), CONFIG, FLOAT, **EQUAL)
    # Only the interrupted units were done twice.
    assert counts == dict(units=3 * 21 + 1, measured=8 + 1)
    mine, other = (
        json.loads((f / 'sensitivity.json').read_text())
        for f in (folder, searched[0])
    )
    for key in ('identity', 'finished'):
        assert mine[key] == other[key]
    assert mine['alone'].keys() == other['alone'].keys()
    # Approximately, since slow tests compile and the fixture does not.
    for name, terms in mine['alone'].items():
        assert terms == pytest.approx(other['alone'][name], rel=0.01)
    assert not list(folder.glob('*progress*'))


@pytest.mark.parametrize(
    'budget, message',
    [
        ('weight_bytes<=1kB', r'smallest feasible one is weight_bytes<=\d+'),
        ('weight_bytes<=1Mb', "unit of measure 'Mb'"),
        ('latency_ms<=1', '--latency-table'),
    ],
)
def test_invalid_budgets_are_refused(again, budget, message):
    with pytest.raises(ValueError, match=message):
        again(budget)


def test_infeasible_budgets_are_refused_before_any_measurement(
    tmp_path, monkeypatch
):
    def measured(*args):
        raise AssertionError('The measurement began')

    monkeypatch.setattr(engine_sensitivity, 'uniform_models', measured)
    folder = tmp_path / 'some/run'
    for budgets, equal_to, words in (
        (['weight_bytes<=1kB'], [], 'weight_bytes<=1kB.*smallest.*largest'),
        (['weight_bytes<=0.5MB,bops<=1k'], [], 'smallest.* or bops<='),
        ([], ['w2'], 'equal to w2.*smallest'),
        (['weight_bytes<=1kB'], ['w2'], '1kB.*; .*equal to w2'),
        ([], ['w2a4'], 'add .activation. to `mixed_precision.kinds`'),
    ):
        cfg = config(folder, mixed_precision__bits=[3, 4, 8])
        with pytest.raises(ValueError, match=words):
            search_bits(cfg, CONFIG, FLOAT, budgets, equal_to)
        assert list(tmp_path.iterdir()) == []


def test_the_budgets_beside_an_infeasible_one_are_searched(again, tmp_path):
    with pytest.raises(ValueError, match='1kB.*The other budgets are done'):
        again('weight_bytes<=1kB', 'weight_bytes<=0.5MB')
    found = json.loads((tmp_path / 'run/search.json').read_text())['found']
    assert [result['budget'] for result in found] == ['weight_bytes<=0.5MB']
    assert (tmp_path / 'run/bits_weight_bytes_0.5MB.py').exists()


def test_the_budgets_beside_one_out_of_time_are_searched(
    again, tmp_path, monkeypatch
):
    solve = bit_search.BitSearch.solve

    def slow(self, budget, searcher=None):
        if budget.text == 'weight_bytes<=0.6MB' and searcher is None:
            raise TimeoutError('No solution within 60 s')
        return solve(self, budget, searcher)

    monkeypatch.setattr(bit_search.BitSearch, 'solve', slow)
    with pytest.raises(ValueError, match='0.6MB.*60 s.*other budgets'):
        again('weight_bytes<=0.6MB', 'weight_bytes<=0.5MB')
    assert (tmp_path / 'run/bits_weight_bytes_0.5MB.py').exists()
    with pytest.raises(ValueError, match='0.6MB.*60 s'):
        again('weight_bytes<=0.6MB')


def test_a_new_search_resumes_nothing(searched):
    folder, _ = searched
    (log,) = folder.glob('*/*.log')
    assert 'Resumes after' not in log.read_text()


@pytest.mark.slow
def test_the_smallest_feasible_budget_is_feasible(again):
    with pytest.raises(ValueError) as error:
        again('weight_bytes<=1kB')
    least = re.findall(r'weight_bytes<=(\d+)', str(error.value))[-1]
    assert again(f'weight_bytes<={least}')
    with pytest.raises(ValueError, match='smallest feasible'):
        again(f'weight_bytes<={int(least) - 1}')


@pytest.mark.parametrize(
    'options, message',
    [
        ({'mixed_precision.bits': [2, 4]}, 'another config'),
        ({'mixed_precision.num_images': 8}, 'another config'),
        ({'model.quantization.weight.symmetric': True}, 'another config'),
        ({'test_cfg.calibration.num_images': 20}, 'another calibration'),
        ({'mixed_precision.width': 8}, 'mixed_precision.width is an unknown'),
        ({'mixed_precision.shared': [['x']]}, 'matches no layer'),
    ],
)
def test_sensitivities_of_another_config_are_refused(again, options, message):
    with pytest.raises(ValueError, match=message):
        again('weight_bytes<=1MB', **options)


def test_sensitivities_of_another_model_are_refused(searched, tmp_path):
    content = json.loads((searched[0] / 'sensitivity.json').read_text())
    content['identity']['checkpoint'] = 'of other weights'
    path = tmp_path / 'sensitivity.json'
    path.write_text(json.dumps(content))
    before = path.read_text()
    with pytest.raises(ValueError, match='measured with another checkpoint'):
        search_bits(
            config(tmp_path), CONFIG, FLOAT, sensitivity=str(path), **EQUAL
        )
    assert path.read_text() == before


def test_a_damaged_file_of_sensitivities_is_named(tmp_path):
    path = tmp_path / 'sensitivity.json'
    path.write_text('{"identity": {}')
    with pytest.raises(ValueError, match='no file of sensitivities'):
        search_bits(
            config(tmp_path), CONFIG, FLOAT, sensitivity=str(path), **EQUAL
        )


def test_bits_of_activations_need_a_search_of_activations(again):
    with pytest.raises(ValueError, match='mixed_precision.kinds'):
        again(equal_to=['w4a4'])


def test_a_search_without_a_budget_is_refused(tmp_path):
    with pytest.raises(ValueError, match='give --budget or --equal-to'):
        search_bits(config(tmp_path), CONFIG, FLOAT)


@pytest.mark.slow
def test_bits_of_weights_and_activations_are_searched(tmp_path):
    options = {
        'mixed_precision.kinds': ['weight', 'activation'],
        'mixed_precision.bits': [4, 8],
        'model.quantization.activation.bits': 8,
    }
    (path,) = search_bits(
        config(tmp_path, **options),
        CONFIG,
        FLOAT,
        ['bops<=0.2G'],
        changed=True,
    )
    overrides = Config.fromfile(path).model.quantization.bit_overrides
    for kind in ('weight', 'activation'):
        assert {value[kind] for value in overrides.values()} == {4, 8}
    down = overrides['backbone.layer2.0.downsample.0']['activation']
    assert down == overrides['backbone.layer2.0.conv1']['activation']


@pytest.mark.slow
def test_a_latency_table_can_be_a_budget(
    again, searched, tmp_path, monkeypatch
):
    """The table has fewer milliseconds for fewer bits."""
    path = tmp_path / 'table.csv'
    monkeypatch.chdir(tmp_path)
    write_latency_table(config(tmp_path / 'table'), str(path), measure=False)
    with open(path) as file:
        rows = list(csv.DictReader(file))
    assert {row['latency_ms'] for row in rows} == {''}
    for row in rows:
        row['latency_ms'] = 0.1 * int(row['weight_bits'])
    # The device has no 2-bit kernels, which matters only if 2 is allowed.
    rows = [row for row in rows if row['weight_bits'] != '2']
    with open(path, 'w') as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    folder, _ = searched

    def search(**options):
        return search_bits(
            config(tmp_path / 'run', **options),
            CONFIG,
            FLOAT,
            ['latency_ms<=11ms'],
            sensitivity=str(folder / 'sensitivity.json'),
            latency_table=str(path),
            changed=True,
        )

    with pytest.raises(ValueError, match='layer1.0.conv1.* at 2-bit weights'):
        search()
    (found,) = search(**{'mixed_precision.allowed': {'*': [4, 8]}})
    bits = Config.fromfile(found).model.quantization.bit_overrides
    total = sum(value['weight'] for value in bits.values())
    assert 100 < total <= 110
    assert MixedPrecision.of(config(tmp_path)).bits == (2, 4, 8)
