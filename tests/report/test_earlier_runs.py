from __future__ import annotations

import json

import pytest

from mmrazor_brecq.report import outdone


def report_of(nats, seconds, **changes):
    """Return the part of a report by which runs are compared."""
    return {
        'identity': dict(config='c', checkpoint='w', calibration='i'),
        'units': [
            dict(name='a', bits={'a.conv': (4, 4)}, seconds=seconds),
            dict(name='all units together', bits={}, seconds=0.0),
        ],
        'divergence': dict(nearest=3.0, quantized=nats),
        **changes,
    }


def as_json(report):
    return json.loads(json.dumps(report))


def test_a_shorter_run_that_came_nearer_is_named():
    earlier = {
        'report.json': as_json(report_of(0.5, 30.0)),
        'report.1.json': as_json(report_of(0.3, 20.0)),
    }
    advice = outdone(report_of(0.672, 90.0), earlier)
    for part in ('0.672', '0.3', '90 s', '20 s', 'report.1.json'):
        assert part in advice
    assert not outdone(report_of(0.2, 90.0), earlier)
    assert not outdone(report_of(0.32, 90.0), earlier)  # No tenth less.
    assert not outdone(report_of(0.672, 90.0), {})


@pytest.mark.parametrize(
    'other',
    [
        report_of(0.1, 300.0),  # A longer one.
        report_of(0.1, 20.0, identity=dict(checkpoint='x', calibration='i')),
        report_of(0.1, 20.0, identity=dict(checkpoint='w', calibration='x')),
        report_of(0.1, 20.0, units=[dict(bits={'a.conv': (8, 8)}, seconds=1)]),
        report_of(float('nan'), 20.0),
        report_of(0.1, 20.0, divergence={}),
        report_of(0.1, None),
        report_of(0.1, 20.0, units=3),
        {},
    ],
)
def test_other_runs_are_not_compared(other):
    assert not outdone(report_of(0.672, 90.0), {'report.json': as_json(other)})


def test_a_run_with_nan_is_outdone():
    advice = outdone(
        report_of(float('nan'), 90.0), {'report.json': report_of(0.1, 1.0)}
    )
    assert 'report.json' in advice


def test_a_report_of_an_earlier_version_is_not_compared():
    report = report_of(0.672, 90.0)
    del report['divergence']
    assert not outdone(report, {'report.json': report_of(0.1, 1.0)})
