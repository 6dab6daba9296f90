"""Tables for people."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console
from rich.table import Table

MODELS = dict(float='float', nearest='nearest rounding', quantized='BRECQ')


def closing_table(report: dict[str, Any]) -> str:
    """Metrics and size of the float, nearest and reconstructed model.

    Args:
        report (dict): As in ``report.json``.

    Returns:
        str: A table of a few lines.
    """
    metrics = list(report['quantized'])
    table = Table('Model', *metrics, 'Weight bytes, packed')
    for key, name in MODELS.items():
        size = report['weight_bytes'][
            'float' if key == 'float' else 'quantized'
        ]
        table.add_row(
            name, *(f'{report[key][m]:.2f}' for m in metrics), f'{size:,}'
        )
    seconds = report['seconds']
    parts = ', '.join(
        f'{part} {value:.0f}'
        for part, value in seconds.items()
        if part != 'total'
    )
    rejected = sum(not unit['accepted'] for unit in report['units'])
    table.caption = (
        f'{seconds["total"]:.0f} s ({parts}), peak memory '
        f'{report["peak_memory_mb"]} MB ({report["activations_mb"]["held"]} '
        f'of activations, {report["activations_mb"]["spilled"]} went '
        f'through files), {rejected} of '
        f'{len(report["units"])} units kept nearest rounding'
    )
    console = Console(file=io.StringIO(), width=100)
    console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined]
