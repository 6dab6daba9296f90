from __future__ import annotations

import sys

import pytest

from mmrazor_brecq.report import bits_figures, bits_table

CONTENT = dict(
    cost='weight_bytes',
    layers=[dict(name='a', parameters=1234), dict(name='b', parameters=10)],
    choices=[
        dict(
            name='a.weight',
            kind='weight',
            layers=['a'],
            loss={2: 0.5, 4: 0.25},
        ),
        dict(
            name='a.activation',
            kind='activation',
            layers=['a'],
            loss={2: 1.0, 4: 0.125},
        ),
    ],
    found=[
        dict(
            budget='weight_bytes<=2kB',
            bits=dict(a=(2, 4), b=(8, None)),
            loss=0.6,
            gap=0.01,
            costs=dict(weight_bytes=1999.0, bops=5e6),
        )
    ],
    front=[
        dict(costs=dict(weight_bytes=x), loss=1 / x) for x in (1000.0, 3000.0)
    ],
    uniform=[
        dict(bits=2, costs=dict(weight_bytes=1000.0), loss=0.9),
        dict(bits=3, costs=dict(weight_bytes=1500.0), loss=None),
    ],
)


def test_the_table_has_a_line_for_each_layer():
    table = bits_table(CONTENT, CONTENT['found'][0])
    (a,) = (line for line in table.splitlines() if '1,234' in line)
    # Weight and input together: 0.5 and 0.125.
    assert '2' in a and '4' in a and '6.25e-01' in a
    (b,) = (line for line in table.splitlines() if 'fixed' in line)
    assert '8' in b and 'float' in b
    assert 'at most 1.00% above the least possible' in table
    assert 'weight_bytes 1,999' in table
    unproven = dict(CONTENT['found'][0], gap=None)
    assert 'not proven' in bits_table(CONTENT, unproven)


def test_figures_are_drawn(tmp_path):
    pytest.importorskip('matplotlib')
    paths = bits_figures(CONTENT, str(tmp_path))
    assert [path.rsplit('/', 1)[1] for path in paths] == [
        'sensitivity.png',
        'front.png',
        'depth.png',
    ]
    for path in paths:
        assert open(path, 'rb').read(4) == b'\x89PNG'


def test_without_matplotlib_there_is_a_warning(
    tmp_path, monkeypatch, warnings_log
):
    monkeypatch.setitem(sys.modules, 'matplotlib.figure', None)
    assert bits_figures(CONTENT, str(tmp_path)) == []
    assert 'mmrazor_brecq[report]' in warnings_log[0]
