"""Show results as tables."""

from __future__ import annotations

import io
import math
import operator
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

#: Content of a JSON file that a run writes.
Report = Mapping[str, Any]

#: Keys of a report, and the names of their models in tables.
MODELS = dict(float='float', nearest='nearest rounding', quantized='BRECQ')
#: Number of metrics that a table has room for.
MAX_COLUMNS = 4
#: Names of metrics that count where the config names none, the first one
#: first. Those of classifiers come first by themselves.
MAIN_METRICS = ('bbox_mAP', 'segm_mAP', 'mAP', 'PQ', 'mIoU')


def closing_table(report: Report) -> str:
    """Return metrics and size of the float, nearest and learned model.

    More than :data:`MAX_COLUMNS` metrics do not fit beside each other: then
    the table has the main one alone. Without metrics the table has the
    sizes, and the divergence from the float network below it.

    Args:
        report (dict): As in ``report.json``.

    Returns:
        str: A table of a few lines.
    """
    metrics = list(report['quantized'])
    if len(metrics) > MAX_COLUMNS:
        metrics = [main_metric(report)]
    table = Table('Model', *metrics, 'Weight bytes')
    for key, name in MODELS.items():
        size = report['weight_bytes'][
            'float' if key == 'float' else 'quantized'
        ]
        table.add_row(
            name, *(_show(report, key, m) for m in metrics), f'{size:,}'
        )
    console = Console(file=io.StringIO(), width=100)
    console.print(table)
    for line in _closing_lines(report):
        console.print(line, highlight=False, markup=False)
    return console.file.getvalue()  # type: ignore[attr-defined]


def main_metric(report: Report) -> str:
    """Return the metric that a network is judged by, '' without any.

    It is the one that the config saves the best checkpoint by (``metric`` of
    the report), or else the first one that has a name of
    :data:`MAIN_METRICS`, or else the first one.

    Args:
        report (dict): As in ``report.json``.
    """
    metrics = list(report['quantized'])
    wanted = [report.get('metric'), *MAIN_METRICS]
    for name in filter(None, wanted):
        for metric in metrics:
            if metric == name or metric.endswith((f'/{name}', f'_{name}')):
                return metric
    return next(iter(metrics), '')


def _show(report: Report, model: str, metric: str) -> str:
    """Return a value with two digits that tell the models apart.

    Metrics that are fractions have three digits after the point.
    """
    values = [abs(report[key][metric]) for key in MODELS]
    digits = 3 if metric == main_metric(report) and max(values) <= 1 else 2
    return f'{report[model][metric]:.{digits}f}'


def _closing_lines(report: Report) -> list[str]:
    """Return sentences on what a run took, and on what came of it."""
    seconds, memory = report['seconds'], report['activations_mb']
    parts = ', '.join(
        f'{part} {value:.0f}'
        for part, value in seconds.items()
        if part != 'total'
    )
    rejected = sum(not unit['accepted'] for unit in report['units'])
    lines = [
        f'{seconds["total"]:.0f} s ({parts}), peak memory '
        f'{report["peak_memory_mb"]} MB ({memory["held"]} of activations, '
        f'{memory["spilled"]} went through files), {rejected} of '
        f'{len(report["units"])} units kept nearest rounding'
    ]
    main, metrics = main_metric(report), list(report['quantized'])
    if len(metrics) > MAX_COLUMNS or metrics[:1] not in ([], [main]):
        lines.insert(
            0,
            f'The models are judged by {main}; report.json has '
            f'{len(metrics) - 1} other metrics',
        )
    if not report['quantized']:
        lines.append(_unmeasured(report['divergence']))
    if 'account' in report:
        lines.append(report['account']['summary'])
    path = path_lines(report)
    if path:
        lines += [f'Accuracy control: {path[0]}', *path[1:]]
    return lines


def path_lines(report: Report) -> list[str]:
    """Return a sentence for each model of an accuracy control, if any.

    Args:
        report (dict): As in ``report.json``.
    """
    path = report.get('max_drop')
    if not path:
        return []
    lines = [
        f'{path["metric"]} may fall by {path["points"]:g} points, from '
        f'{path["float"]:.4g}; '
        + ('it holds' if path['met'] else 'it does not hold')
    ]
    for number, attempt in enumerate(path['attempts']):
        count = len(attempt['changed'])
        what = (
            f'{count} layer{"s" * (count != 1)} with more bits, '
            f'{attempt["reused"]} of {attempt["units"]} units as before'
            if number
            else 'the bits of the config'
        )
        kept = ' (kept)' if number == path['kept'] else ''
        lines.append(
            f'  {number + 1}. {what}: {attempt["value"]:.4g}, '
            f'{attempt["drop"]:.3g} points below float{kept}'
        )
    return lines


def _unmeasured(divergence: Mapping[str, float]) -> str:
    """Return what is known of a model whose accuracy was not measured.

    Args:
        divergence (dict): From the float network, by model, in nats.
    """
    return (
        'The accuracy was not measured. On calibration images held out, '
        'outputs diverge from those of the float network by '
        f'{divergence["nearest"]:.3g} nats with nearest rounding, and by '
        f'{divergence["quantized"]:.3g} with BRECQ'
    )


def setback(report: Report) -> str:
    """Return advice if what was learned is worse than nearest rounding.

    A metric that is better than that of the float model needs no advice.

    Args:
        report (dict): As in ``report.json``; its main metric counts.

    Returns:
        str: A sentence, or an empty string.
    """
    metric = main_metric(report)
    if not metric:
        return ''
    floating, nearest, learned = (report[key][metric] for key in MODELS)
    worse = operator.gt if is_error(metric) else operator.lt
    if not (worse(learned, floating) and worse(learned, nearest)):
        return ''
    return (
        f'{metric} is {learned:.2f} with what was learned, worse than '
        f'{nearest:.2f} with nearest rounding alone (float {floating:.2f}): '
        'where the difference is more than chance, give more images '
        '(--num-images, `test_cfg.calibration.num_images`) or more iterations '
        '(--schedule, `model.reconstructor.iterations`), or keep nearest '
        'rounding '
        "(`model.reconstructor.type='NearestRounding'`)"
    )


#: Words in the names of metrics that are better when they are smaller.
ERRORS = frozenset(
    'loss error err mae mse rmse nll fid epe perplexity ppl'.split()
)


def is_error(metric: str) -> bool:
    """Return whether a metric is better when smaller, by its name."""
    return not ERRORS.isdisjoint(re.findall('[a-z]+', metric.lower()))


def export_table(report: Report) -> str:
    """Return how far an exported file is from its network.

    Args:
        report (dict): As in the JSON file beside the exported one.

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
    console = Console(file=io.StringIO(), width=100)
    console.print(table)
    for line in _export_lines(report):
        console.print(line, highlight=False)
    return console.file.getvalue()  # type: ignore[attr-defined]


def _export_lines(report: Report) -> list[str]:
    """Return sentences on the layers of an exported file and its runtimes."""
    lines: list[str] = [
        'The largest difference is relative to the largest output, the mean '
        'one to the mean magnitude'
    ]
    if metric := report.get('metric'):
        lines.append(
            f'{metric["name"]} of the file is {metric["file"]:.4g}, and '
            f'{metric["torch"]:.4g} in torch ({metric["images"]} images)'
        )
    lines += [_layer_line(report['layers'])] if report['layers'] else []
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
    return lines


def _layer_line(layers: Sequence[Mapping[str, Any]]) -> str:
    """Return a sentence on how many integers of the layers are equal."""
    unequal = [layer for layer in layers if layer['exact'] < 1]
    line = (
        'Layers and quantizers of inputs, each on the same input: '
        f'{len(layers) - len(unequal)} of {len(layers)} give the same '
        'integers throughout'
    )
    if not unequal:
        return line
    worst = min(unequal, key=lambda layer: layer['exact'])
    within = min(layer['within'] for layer in layers)
    ties = worst.get('ties') or 0  # Reports of earlier versions have none.
    line += (
        f'; of the others at least {_floor(within)} differ by at most one; '
        f'furthest is {worst["name"]}, {_floor(worst["exact"])} equal'
    )
    if ties >= 5e-5:  # Else the line would say 0.00 %.
        line += f' and {ties:.2%} ties, halfway between two integers'
    return line


def _by_reason(names: dict[str, str], shown: int = 3) -> list[str]:
    """Return one text for each reason, with the names that have it.

    Args:
        names (dict[str, str]): Reasons, by name.
        shown (int): Names that are listed; others are counted.
    """
    groups: dict[str, list[str]] = {}
    for name, reason in names.items():
        groups.setdefault(reason, []).append(name)
    return [
        f'{", ".join(group[:shown])}'
        + (f' and {len(group) - shown} more' if len(group) > shown else '')
        + f' ({reason})'
        for reason, group in groups.items()
    ]


def _floor(fraction: float) -> str:
    """Return per cent, rounded down: 99.999 must not look like 100."""
    return f'{math.floor(fraction * 1e4) / 1e4:.2%}'
