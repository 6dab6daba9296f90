"""The table and the page of an analysis."""

from __future__ import annotations

import pytest

from mmrazor_brecq.report import analysis_page, analysis_table, ranked
from mmrazor_brecq.report.html import MAX_BYTES

from .test_html import EVIL


def row(name, alone, **changes):
    return dict(
        dict(
            name=name,
            unit='block',
            bits=[4, 4],
            alone=alone,
            left_out=0.5,
            signal_db=20.0,
        ),
        **changes,
    )


def content(*rows, **changes):
    return dict(
        checkpoint='quantized.pth',
        images=64,
        divergence=0.6,
        layers=list(rows),
        **changes,
    )


def test_the_costliest_comes_first_and_what_is_not_finite_before_it():
    rows = row('a', 0.1), row('b', float('nan')), row('c', 0.3)
    assert [r['name'] for r in ranked(content(*rows))] == ['b', 'c', 'a']
    text = analysis_table(content(*rows))
    assert text.index('│ b') < text.index('│ c') < text.index('│ a')


def test_a_layer_far_above_the_others_gets_a_line_of_the_config():
    rows = [row(f'conv{i}', 0.01) for i in range(20)]
    found = content(*rows, row('stem', 0.9, bits=[None, 4], signal_db=None))
    for text in analysis_table(found), analysis_page(found):
        assert 'bit_overrides=' in text and 'stem' in text
    assert 'No layer costs' in analysis_table(content(*rows))
    assert 'No layer costs' in analysis_table(content(row('a', 0.0)))


def test_metrics_and_sensitivities_have_columns_where_they_are_known():
    known = row(
        'a',
        0.1,
        metrics=dict(alone={'top1': 93.21}, left_out={'top1': 92.9}),
        predicted={'4': 0.12, '8': 0.001},
    )
    more = dict(metric='top1', float={'top1': 93.5}, quantized={'top1': 90.0})
    text = analysis_table(content(known, row('b', 0.2), **more))
    assert '93.21' in text and '0.12; 0.001 at 8' in text
    page = analysis_page(content(known, row('b', 0.2), **more))
    assert '93.21' in page and '90' in page and 'Predicted:' in page


@pytest.mark.parametrize('count', [0, 1, 2500])
def test_a_page_is_small_and_names_run_nothing(count):
    found = content(*(row(f'{EVIL}{i}' * 3, 0.1) for i in range(count)))
    page = analysis_page(found)
    assert len(page.encode()) <= MAX_BYTES and '<script' not in page
    assert page.endswith('</html>\n') or page.endswith('</html>')
