"""Tables for people."""

from __future__ import annotations

import io
import json
import math
import operator
import re
from collections.abc import Mapping
from typing import Any, NamedTuple, Optional

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
    table = Table('Model', *metrics, 'Weight bytes')
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
    table.caption_justify = 'left'
    table.caption = (
        f'{seconds["total"]:.0f} s ({parts}), peak memory '
        f'{report["peak_memory_mb"]} MB ({report["activations_mb"]["held"]} '
        f'of activations, {report["activations_mb"]["spilled"]} went '
        f'through files), {rejected} of '
        f'{len(report["units"])} units kept nearest rounding'
    )
    if 'account' in report:
        table.caption += f'\n{report["account"]["summary"]}'
    console = Console(file=io.StringIO(), width=100)
    console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined]


def setback(report: dict[str, Any]) -> str:
    """Says so if learning cost what nearest rounding alone would keep.

    It did where its metric is worse than that of nearest rounding, and
    than that of the float model: one that is better than float needs no
    advice.

    Args:
        report (dict): As in ``report.json``; its first metric counts.

    Returns:
        str: A sentence, or nothing.
    """
    metric = next(iter(report['quantized']), None)
    if metric is None:
        return ''
    exact, nearest, learned = (report[key][metric] for key in MODELS)
    worse = operator.gt if _falls(metric) else operator.lt
    if not (worse(learned, exact) and worse(learned, nearest)):
        return ''
    return (
        f'{metric} is {learned:.2f} with what was learned, worse than '
        f'{nearest:.2f} with nearest rounding alone (float {exact:.2f}): '
        'where the difference is more than chance, give more images '
        '(`test_cfg.calibration.num_images`) or more iterations '
        '(`model.reconstructor.iterations`), or keep nearest rounding '
        "(`model.reconstructor.type='NearestRounding'`)"
    )


def outdone(
    report: dict[str, Any], earlier: Mapping[str, dict[str, Any]]
) -> str:
    """Says so if a shorter run has come nearer to the float network.

    It is one of the same weights, images and bits, whose outputs diverge
    clearly less, by a tenth, on the calibration images that were held out.

    Args:
        report (dict): As in ``report.json``.
        earlier (dict): Reports of other runs, by name of their file.

    Returns:
        str: A sentence, or nothing.
    """
    ours = _ended(report)
    rivals = {
        name: run
        for name, other in earlier.items()
        if ours and (run := _ended(other)) and run.outdoes(ours)
    }
    name = min(rivals, key=lambda name: rivals[name].far, default=None)
    if ours is None or name is None:
        return ''
    return (
        f'On the calibration images held out, outputs diverge from those of '
        f'the float network by {ours.far:.3g} nats; an earlier run of '
        f'{rivals[name].seconds:.0f} s in place of {ours.seconds:.0f} s came '
        f'to {rivals[name].far:.3g} ({name}): the longer one is the worse '
        'one, so keep the checkpoint of the shorter'
    )


class _Run(NamedTuple):
    """What counts of a report when runs are compared."""

    of: tuple[Any, ...]
    far: float
    seconds: float

    def outdoes(self, other: _Run) -> bool:
        """Whether it is shorter, of the same things, and clearly nearer."""
        return (
            self.of == other.of
            and self.seconds < other.seconds
            and math.isfinite(self.far)
            and not self.far >= 0.9 * other.far
        )


def _ended(report: Mapping[str, Any]) -> Optional[_Run]:
    """What a report says; nothing where it is of an earlier version."""
    try:
        identity = report['identity']
        bits: dict[str, Any] = {}
        for unit in report['units']:
            bits.update(unit['bits'])
        # As JSON has it, where pairs are lists.
        known = json.dumps(bits, sort_keys=True)
        return _Run(
            (identity['checkpoint'], identity['calibration'], known),
            float(report['divergence']['quantized']),
            sum(float(unit['seconds']) for unit in report['units']),
        )
    except (AttributeError, KeyError, TypeError, ValueError):
        return None


#: Words in the names of metrics that are better the smaller they are.
FALLING = frozenset(
    'loss error err mae mse rmse nll fid epe perplexity ppl'.split()
)


def _falls(metric: str) -> bool:
    """Whether a metric is better the smaller it is, by its name."""
    return not FALLING.isdisjoint(re.findall('[a-z]+', metric.lower()))


def export_table(report: dict[str, Any]) -> str:
    """How far an exported file is from the network that it was made from.

    Args:
        report (dict): As in the JSON file beside it.

    Returns:
        str: A table and a few lines.
    """
    table = Table(
        'Runtime',
        'Images',
        'Same class',
        'Largest diff.',
        'Mean diff.',
        'Top-1',
        'in torch',
    )
    for match in report['matches']:
        top1 = (
            '-' if match[key] is None else f'{match[key]:.2f}'
            for key in ('accuracy', 'accuracy_torch')
        )
        table.add_row(
            match['runtime'],
            str(match['images']),
            '-' if match['agreement'] is None else f'{match["agreement"]:.2%}',
            f'{match["largest"]:.2%}',
            f'{match["mean"]:.2%}',
            *top1,
        )
    layers = report['layers']
    lines = []
    if layers:
        worst = min(layers, key=lambda layer: layer['exact'])
        equal = sum(layer['exact'] == 1 for layer in layers)
        within = min(layer['within'] for layer in layers)
        lines.append(
            f'Layer by layer, each on the same input: {equal} of '
            f'{len(layers)} give the same integers throughout, at '
            f'least {_floor(within)} are within one step in all; furthest is '
            f'{worst["name"]}, {_floor(worst["exact"])} equal'
        )
    lines += [
        f'{name} does not take it: {reason}'
        for name, reason in report['refused'].items()
    ]
    counts = report['operators']
    floats = _by_reason(report['float_convolutions'])
    if counts:
        integer = ', '.join(
            f'{counts[op]} {op}'
            for op in sorted(counts)
            if op.startswith('Q') or 'Integer' in op
        )
        lines.append(
            f'ONNX Runtime makes of it: {integer}; convolutions in float: '
            f'{"; ".join(floats) or "none"}. It needs the session option '
            'session.x64quantprecision=1 on x86 CPUs without VNNI, where '
            'sums saturate without it'
        )
    console = Console(file=io.StringIO(), width=100)
    console.print(table)
    for line in lines:
        console.print(line, highlight=False)
    return console.file.getvalue()  # type: ignore[attr-defined]


def _by_reason(names: dict[str, str], shown: int = 3) -> list[str]:
    """Names with one reason together, the first few of them."""
    groups: dict[str, list[str]] = {}
    for name, reason in names.items():
        groups.setdefault(reason, []).append(name)
    return [
        f'{", ".join(group[:shown])}'
        + (f' and {len(group) - shown} more' if len(group) > shown else '')
        + f' ({reason})'
        for reason, group in groups.items()
    ]


def _floor(share: float) -> str:
    """Per cent, rounded down: what is not all of it shall not look so."""
    return f'{math.floor(share * 1e4) / 1e4:.2%}'
