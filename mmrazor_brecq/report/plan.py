"""Show what a run will do, before it is begun."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from ..targets import FLOAT


def plan_table(plan: Mapping[str, Any]) -> str:
    """Return the units, layers and bits of a run, and what it will take.

    Args:
        plan (dict): As of :func:`mmrazor_brecq.engine.dry_run.dry_run`.
    """
    table = Table('Unit', 'Layer', title='What will be quantized')
    for name in ('Weight', 'Input'):
        table.add_column(f'{name} bits', justify='right')
    for unit in plan['units']:
        for i, layer in enumerate(unit['layers']):
            bits = (
                '' if x is None else 'float' if x == FLOAT else f'{x}'
                for x in unit['bits'][layer]
            )
            table.add_row('' if i else unit['name'], layer, *bits)
    console = Console(file=io.StringIO(), width=100)
    console.print(table)
    seconds = plan['seconds']
    parts = ', '.join(
        f'{part} {value:.0f}'
        for part, value in seconds.items()
        if part != 'total'
    )
    account = plan['account']
    for line in (
        f'{len(plan["units"])} units; {account["summary"]}',
        *(
            f'  in float: {name} ({reason})'
            for name, reason in account['left_float'].items()
        ),
        f'It will take about {seconds["total"]:.0f} s ({parts}) and '
        f'{plan["memory_mb"]} MB of memory, as estimated from two units',
        'Nothing was written: the same command without --dry-run begins',
    ):
        console.print(line, highlight=False, markup=False)
    return console.file.getvalue()  # type: ignore[attr-defined]
