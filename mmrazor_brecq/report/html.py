"""Write a report as one page of HTML that needs no network and no script.

Jinja fills the template and escapes all values. Charts are paths of SVG in
the page, because they take the colors of the page, dark or light, and a
tenth of a millisecond each; matplotlib takes a tenth of a second, and
plotly's script alone is larger than a page may be. What opens on a click is
a ``details`` element.
"""

from __future__ import annotations

import html
import os
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Annotated, Any, Union

import jinja2
from pydantic import Field

from ..checkpoint import write_whole
from ..validation import validated
from . import charts
from .findings import findings, shares
from .tables import MODELS, Report, main_metric, path_lines

#: Bytes that a page may have.
MAX_BYTES = 2_000_000
#: Rows of the longest tables, and layers with histograms, at most.
MAX_ROWS, MAX_LAYERS = 1000, 600
#: Letters of a name that are shown.
MAX_NAME = 120


@validated
def write(
    report: dict[str, Any],
    path: Union[Annotated[str, Field(min_length=1)], os.PathLike],
) -> None:
    """Write a report as a page of HTML.

    Args:
        report (dict): What ``quantize`` returned, or the content of a
            ``report.json``.
        path (str): The file. An existing one is overwritten.

    Raises:
        OSError: If the file cannot be written.
        ValueError: If it is no report.

    Example:
        >>> model, report = mmrazor_brecq.quantize(resnet, images)
        >>> mmrazor_brecq.report.write(report, 'report.html')
    """
    write_whole(os.fspath(path), page(report))


def page(report: Report) -> str:
    """Return a report as a page of HTML of at most 2 MB.

    Args:
        report (dict): As for :func:`write`.

    Raises:
        ValueError: If it is no report.
    """
    if 'units' not in report or 'account' not in report:
        raise ValueError(
            f'`report` has the keys {", ".join(map(str, report)) or "none"}, '
            'expected `units` and `account`: give what quantize() returned, '
            'or the content of a report.json'
        )
    rows, layers = MAX_ROWS, MAX_LAYERS
    while True:
        text = template('report').render(_content(report, rows, layers))
        if len(text.encode()) <= MAX_BYTES:
            return text
        rows, layers = rows // 2, layers // 2


class ShownReport(dict):
    """A report, which notebooks show as a page."""

    def _repr_html_(self) -> str:
        """Return a frame with the page, apart from the notebook's style."""
        return (
            '<iframe sandbox title="mmrazor_brecq report" style="width:100%;'
            'height:640px;border:1px solid #8888" srcdoc="'
            f'{html.escape(page(self))}"></iframe>'
        )


@cache
def template(name: str) -> jinja2.Template:
    """Return a template of this package, by its name without endings."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__, ''),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(name=_short, number=_number)
    return environment.get_template(f'{name}.html.jinja')


def _content(report: Report, rows: int, layers: int) -> dict[str, Any]:
    """Return what the template shows.

    Args:
        report (dict): The report.
        rows (int): Rows of each table, at most.
        layers (int): Layers with histograms, at most.
    """
    units = list(_units(report))
    details = [_layer(layer) for layer in report.get('layers', ())]
    return dict(
        findings=findings(report),
        accuracy=_accuracy(report),
        control=path_lines(report),
        changed=_changed(report)[:rows],
        account=report['account'],
        left_float=list(report['account']['left_float'].items())[:rows],
        units=units[:rows],
        units_left=max(0, len(units) - rows),
        layers=details[:layers],
        layers_left=max(0, len(details) - layers),
        depth=_depth(report),
        total=_times(report).get('total'),
        seconds=_seconds(report),
        facts=_facts(report),
    )


def _accuracy(report: Report) -> dict[str, Any]:
    """Return the table of models and metrics, the main one first."""
    models = [key for key in MODELS if isinstance(report.get(key), Mapping)]
    metrics = list(report['quantized']) if 'quantized' in models else []
    if metrics:
        main = main_metric(report)
        metrics = [main, *(name for name in metrics if name != main)]
    sizes, errors = report['weight_bytes'], report.get('divergence') or {}
    table = []
    for key, model in MODELS.items():
        if key in models or key in errors or key in sizes:
            size = sizes['float' if key == 'float' else 'quantized']
            values = [report[key].get(m) if metrics else None for m in metrics]
            nats = 0.0 if key == 'float' else errors.get(key)
            table.append((model, values, nats, size))
    return dict(metrics=metrics, rows=table)


def _changed(report: Report) -> list[tuple[str, str]]:
    """Return the layers to which accuracy control gave more bits."""
    path = report.get('max_drop')
    if not path:
        return []
    changed = path['attempts'][path['kept']]['changed']
    return [(name, bits_text(pair)) for name, pair in changed.items()]


def _units(report: Report) -> Iterator[dict[str, Any]]:
    """Yield the rows of units, in the order of execution."""
    found = shares(report)
    largest = max(found.values(), default=0.0) or 1.0
    for number, unit in enumerate(report['units'], 1):
        share = found.get(unit['name'])
        bits = sorted({bits_text(b) for b in unit['bits'].values()})
        yield dict(
            number=number,
            name=unit['name'] or 'network',
            layers=unit['layers'],
            bits=', '.join(bits) or 'as before',
            before=unit['before'],
            after=unit['after'],
            kept=unit['accepted'],
            share=share,
            height=None if share is None else round(100 * share / largest),
            seconds=unit['seconds'],
            note=unit['note'],
            curve=charts.curve(unit.get('losses') or ()),
        )


def bits_text(bits: Any) -> str:
    """Return the bits of weight and input as text, such as 4/8."""
    weight, second = ('float' if x == 32 else x for x in bits)
    # A product of activations has no weight.
    return f'{second}/{second}' if weight is None else f'{weight}/{second}'


def _layer(layer: Mapping[str, Any]) -> dict[str, Any]:
    """Return a layer with its charts."""
    tensors = []
    nouns = dict(weight='weight', input='input')
    if layer['weight'] is None:
        nouns = dict(input='left operand', right='right operand')
    for key, noun in nouns.items():
        found = layer[key]
        if found and 'counts' in found:
            tensors.append((noun, found, charts.histogram(found)))
    return dict(layer, tensors=tensors)


def _depth(report: Report) -> dict[str, Any]:
    """Return the chart of bits over the layers."""
    layers = report.get('layers', ())
    inputs = [x['input'] and x['input']['bits'] for x in layers]
    return dict(
        count=len(layers),
        weight=charts.steps(
            # A product of activations has no weight.
            [x['weight'] and x['weight']['bits'] for x in layers]
        ),
        input=charts.steps(inputs),
    )


def _seconds(report: Report) -> list[tuple[str, float, int]]:
    """Return the parts of a run: name, seconds, and width in per cent."""
    seconds = _times(report)
    total = seconds.get('total') or 1.0
    return [
        (part, value, round(100 * value / total))
        for part, value in seconds.items()
        if part != 'total'
    ]


def _times(report: Report) -> Mapping[str, float]:
    """Return the seconds of a run by part; `quantize` knows their sum."""
    seconds = report.get('seconds', {})
    return seconds if isinstance(seconds, Mapping) else dict(total=seconds)


def _facts(report: Report) -> list[tuple[str, str]]:
    """Return what else is known of a run: memory, machine, versions."""
    facts = []
    memory = report.get('activations_mb') or {}
    if 'peak_memory_mb' in report:
        facts.append(('peak memory', f'{report["peak_memory_mb"]:,} MiB'))
    if memory:
        facts.append(
            (
                'activations',
                f'{memory["held"]:,} MiB in memory, {memory["spilled"]:,} '
                'MiB through files',
            )
        )
    facts += [
        (key, str(report[key]))
        for key in ('processes', 'device', 'seed')
        if key in report
    ]
    versions = report.get('versions') or {}
    if versions:
        text = ', '.join(f'{k} {v}' for k, v in versions.items() if v)
        facts.append(('versions', text))
    facts += [
        (f'hash of the {key}', str(value))
        for key, value in (report.get('identity') or {}).items()
    ]
    return facts


def _short(name: object) -> str:
    """Return a name of at most ``MAX_NAME`` letters."""
    text = str(name)
    return text if len(text) <= MAX_NAME else f'{text[: MAX_NAME - 1]}…'


def _number(value: Any, digits: int = 3) -> str:
    """Return a number with few digits, or a dash for none."""
    return '–' if value is None else f'{value:.{digits}g}'
