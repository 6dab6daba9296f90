from __future__ import annotations

import json
import logging

import pytest
import torch
from torch import nn

from mmrazor_brecq.algorithms import BRECQ
from mmrazor_brecq.reconstruction import UnitReport
from mmrazor_brecq.report import (
    UnitProgress,
    closing_table,
    outdone,
    setback,
    weight_bytes,
)


def test_weight_bytes_are_what_the_bits_say():
    model = BRECQ(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 8, 3, bias=False)),
        quantization=dict(
            bit_overrides={'0': dict(weight=8), '1': dict(weight=2)}
        ),
    ).eval()
    model.prepare(torch.zeros(1, 3, 8, 8))
    sizes = weight_bytes(model)
    assert sizes['float'] == 4 * (4 * 27 + 4 + 8 * 36)
    assert sizes['quantized'] == (4 * 27 + 5 * 4 + 4 * 4 + 8 * 36 // 4 + 5 * 8)


def test_closing_table_has_all_models():
    top = {'accuracy/top1': 90.126, 'accuracy/top5': 99.0}
    table = closing_table(
        dict(
            float=top,
            nearest={**top, 'accuracy/top1': 50.0},
            quantized={**top, 'accuracy/top1': 89.5},
            weight_bytes=dict(float=4000, quantized=500),
            seconds=dict(reconstruct=3.0, total=5.0),
            peak_memory_mb=100,
            activations_mb=dict(budget=None, held=70, spilled=20),
            units=[dict(accepted=True), dict(accepted=False)],
            account=dict(summary='6 of 7 layers quantized; up is not'),
        )
    )
    for text in (
        *('90.13', '50.00', '89.50', '4,000', '1 of', '2 units'),
        '6 of 7 layers quantized; up is not',
    ):
        assert text in table


@pytest.mark.parametrize(
    ('metric', 'exact', 'nearest', 'learned', 'worse'),
    [
        ('accuracy/top1', 90.0, 50.0, 80.0, False),
        ('accuracy/top1', 90.0, 80.0, 50.0, True),
        ('accuracy/top1', 90.0, 90.1, 89.8, True),
        ('accuracy/top1', 90.0, 80.0, 80.0, False),
        # Better than float is no reason to complain, however it came.
        ('accuracy/top1', 90.0, 90.1, 91.0, False),
        ('accuracy/top1', 90.0, 91.0, 90.5, False),
        ('coco/bbox_mAP', 0.4, 0.39, 0.45, False),
        ('single-label/f1-score', 80.0, 79.0, 70.0, True),
        ('loss', 0.2, 0.9, 0.3, False),
        ('loss', 0.2, 0.3, 0.9, True),
        ('val/MAE', 0.2, 0.3, 0.1, False),
        ('depth/abs_err', 0.2, 0.3, 0.4, True),
        ('accuracy/top1', 90.0, 80.0, float('nan'), False),
    ],
)
def test_what_did_not_help_in_the_end_is_told(
    metric, exact, nearest, learned, worse
):
    models = dict(float=exact, nearest=nearest, quantized=learned)
    report = {name: {metric: value} for name, value in models.items()}
    told = setback(report)
    assert bool(told) is worse
    if worse:
        assert f'{learned:.2f}' in told and 'num_images' in told


def ended(far, seconds, **changes):
    """A report of a run, as far as runs are compared."""
    return {
        'identity': dict(config='c', checkpoint='w', calibration='i'),
        'units': [
            dict(name='a', bits={'a.conv': (4, 4)}, seconds=seconds),
            dict(name='all units together', bits={}, seconds=0.0),
        ],
        'divergence': dict(nearest=3.0, quantized=far),
        **changes,
    }


def as_json(report):
    return json.loads(json.dumps(report))


def test_a_shorter_run_that_came_nearer_is_told():
    earlier = {
        'report.json': as_json(ended(0.5, 30.0)),
        'report.1.json': as_json(ended(0.3, 20.0)),
    }
    told = outdone(ended(0.672, 90.0), earlier)
    for part in ('0.672', '0.3', '90 s', '20 s', 'report.1.json'):
        assert part in told
    assert not outdone(ended(0.2, 90.0), earlier)
    assert not outdone(ended(0.32, 90.0), earlier)  # as good as the same
    assert not outdone(ended(0.672, 90.0), {})


@pytest.mark.parametrize(
    'other',
    [
        ended(0.1, 300.0),  # a longer one
        ended(0.1, 20.0, identity=dict(checkpoint='x', calibration='i')),
        ended(0.1, 20.0, identity=dict(checkpoint='w', calibration='x')),
        ended(0.1, 20.0, units=[dict(bits={'a.conv': (8, 8)}, seconds=1)]),
        ended(float('nan'), 20.0),
        ended(0.1, 20.0, divergence={}),
        ended(0.1, None),
        ended(0.1, 20.0, units=3),
        {},
    ],
)
def test_runs_of_other_things_are_no_rivals(other):
    assert not outdone(ended(0.672, 90.0), {'report.json': as_json(other)})


def test_a_run_whose_outputs_are_no_numbers_is_outdone():
    told = outdone(ended(float('nan'), 90.0), {'report.json': ended(0.1, 1.0)})
    assert 'report.json' in told


def test_a_run_of_an_earlier_version_has_no_rivals():
    report = ended(0.672, 90.0)
    del report['divergence']
    assert not outdone(report, {'report.json': ended(0.1, 1.0)})


def test_a_line_a_unit(caplog):
    logger = logging.getLogger('test_report')
    with caplog.at_level(logging.INFO), UnitProgress(2, logger) as show:
        show(UnitReport('a', before=2.0, after=1.0, seconds=3.0))
        show(UnitReport('b', note='something was wrong'))
    assert 'a: error 2 -> 1, 3.0 s' in caplog.text
    assert 'something was wrong' in caplog.text
