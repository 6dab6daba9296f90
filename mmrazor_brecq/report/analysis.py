"""Show what single layers cost: a table for the terminal, and a page."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from .findings import LARGE_SHARE
from .html import MAX_BYTES, MAX_ROWS, bits_text, template
from .tables import Report

#: Rows of the table on the terminal.
SHOWN = 40
#: Letters of a line, for up to nine columns.
WIDTH = 140

#: A layer, as in ``analysis.json``.
Row = Mapping[str, Any]


def ranked(content: Report) -> list[Any]:
    """Return the layers of an analysis, the one that costs most first.

    It is the one that moves the output furthest when it alone is quantized;
    one whose output is not finite comes first.

    Args:
        content (dict): As in ``analysis.json``.
    """

    def cost(row: Row) -> float:
        alone = row['alone']
        return alone if math.isfinite(alone) else math.inf

    return sorted(content['layers'], key=cost, reverse=True)


def analysis_table(content: Report) -> str:
    """Return the ranking of layers as a table, and what follows from it.

    Args:
        content (dict): As in ``analysis.json``.
    """
    rows = _rows(content)
    table = Table('Layer', title='Layers, the costliest first')
    for name in _columns(content):
        table.add_column(name, justify='right')
    for row in rows[:SHOWN]:
        table.add_row(row['name'], *row['cells'])
    console = Console(file=io.StringIO(), width=WIDTH)
    console.print(table)
    more = len(rows) - SHOWN
    for line in (
        *([f'and {more} more, in analysis.json'] if more > 0 else []),
        f'On {content["images"]} held-out images the output of the whole '
        f'network diverges by {content["divergence"]:.3g} nats; `alone`: '
        'nats when the layer alone is quantized; `left out`: by how many '
        'nats the whole improves when it alone is float',
        *_advice(content),
    ):
        console.print(line, highlight=False, markup=False)
    return console.file.getvalue()  # type: ignore[attr-defined]


def analysis_page(content: Report) -> str:
    """Return an analysis as a page of HTML of at most 2 MB.

    Args:
        content (dict): As in ``analysis.json``.
    """
    rows, count = _rows(content), MAX_ROWS
    while True:
        text = template('analysis').render(
            checkpoint=content['checkpoint'],
            images=content['images'],
            divergence=content['divergence'],
            metrics=_metrics(content),
            columns=_columns(content),
            rows=rows[:count],
            left=max(0, len(rows) - count),
            advice=_advice(content),
        )
        if len(text.encode()) <= MAX_BYTES:
            return text
        count //= 2


def _columns(content: Report) -> list[str]:
    """Return the heads of the columns after the name."""
    columns = ['Bits', 'Signal (dB)', 'Alone', 'Share', 'Left out']
    if metric := content.get('metric'):
        # Without what all metrics of an evaluator begin with.
        short = metric.rpartition('/')[2]
        columns += [f'{short} alone', f'{short} left out']
    if _is_predicted(content):
        columns.append('Predicted')
    return columns


def _is_predicted(content: Report) -> bool:
    return any(row.get('predicted') for row in content['layers'])


def _rows(content: Report) -> list[dict[str, Any]]:
    """Return the rows of the table, in the order of the ranking."""
    rows, metric = ranked(content), content.get('metric')
    total = _total(content)
    largest = max((_finite(row['alone']) for row in rows), default=0.0) or 1.0
    found = []
    for row in rows:
        signal, share = row['signal_db'], _finite(row['alone']) / total
        cells = [
            bits_text(row['bits']),
            '–' if signal is None else f'{signal:.1f}',
            f'{row["alone"]:.3g}',
            f'{share:.1%}',
            f'{content["divergence"] - row["left_out"]:.3g}',
        ]
        if metric:
            values = row.get('metrics') or {}
            cells += [
                f'{values[way][metric]:.4g}' if way in values else ''
                for way in ('alone', 'left_out')
            ]
        if _is_predicted(content):
            cells.append(_prediction(row))
        width = round(100 * _finite(row['alone']) / largest)
        found.append(
            dict(
                name=row['name'] or 'network',
                unit=row['unit'] or 'network',
                cells=cells,
                width=width,
            )
        )
    return found


def _finite(value: float) -> float:
    return max(0.0, value) if math.isfinite(value) else 0.0


def _total(content: Report) -> float:
    """Return the sum of what all layers cost alone, never 0."""
    return sum(_finite(row['alone']) for row in content['layers']) or 1.0


def _prediction(row: Row) -> str:
    """Return the sensitivity of a weight at its bits, and at the most."""
    terms = row.get('predicted') or {}
    now = terms.get(str(row['bits'][0]))
    if now is None:
        return ''
    most = max(terms, key=int)
    return f'{now:.2g}; {terms[most]:.2g} at {most}'


def _metrics(content: Report) -> list[tuple[str, float, float]]:
    """Return the metrics of the float and of the quantized network."""
    before, after = content.get('float') or {}, content.get('quantized') or {}
    return [(name, before[name], after[name]) for name in after]


def _advice(content: Report) -> list[str]:
    """Return sentences on layers that cost far more than others."""
    total = _total(content)
    # Of few layers, each has a large share anyway.
    least = max(LARGE_SHARE, 1.5 / max(1, len(content['layers'])))
    found = [
        row['name']
        for row in ranked(content)
        if _finite(row['alone']) > least * total
        and _finite(row['alone']) > 1e-6
    ]
    if not found:
        return ['No layer costs far more than the others']
    overrides = ', '.join(f'{name!r}: 8' for name in found)
    verb = 'costs' if len(found) == 1 else 'each cost'
    return [
        f'{", ".join(found)} {verb} more than {least:.0%} of what all layers '
        'cost alone: model.quantization.bit_overrides='
        f'{{{overrides}}} gives more bits'
    ]
