"""What a search of widths found, for people: a table and three figures."""

from __future__ import annotations

import io
import os.path as osp
from collections.abc import Mapping
from typing import Any

from mmengine.logging import print_log
from rich.console import Console
from rich.table import Table

Content = Mapping[str, Any]


def bits_table(content: Content, found: Content) -> str:
    """Each layer's parameters, widths, and share of the predicted loss.

    Args:
        content (dict): As in ``search.json``.
        found (dict): One of ``content['found']``.

    Returns:
        str: A table of a line a layer.
    """
    table = Table('Layer', title=found['budget'])
    for name in ('Parameters', 'Weight', 'Input', 'Sensitivity (nats)'):
        table.add_column(name, justify='right')
    losses: dict[str, float] = {}
    for choice in content['choices']:
        width = found['bits'][choice['layers'][0]][choice['kind'] != 'weight']
        layer = choice['layers'][0]
        losses[layer] = losses.get(layer, 0.0) + choice['loss'][width]
    for layer in content['layers']:
        weight, activation = found['bits'][layer['name']]
        loss = losses.get(layer['name'])
        table.add_row(
            layer['name'],
            f'{layer["parameters"]:,}',
            f'{weight}',
            'float' if activation is None else f'{activation}',
            'fixed' if loss is None else f'{loss:.2e}',
        )
    gap = found['gap']
    proof = (
        'not proven to be the least'
        if gap is None
        else f'at most {gap:.2%} above the least possible'
    )
    costs = ', '.join(f'{k} {v:,.6g}' for k, v in found['costs'].items())
    table.caption = f'Predicted loss {found["loss"]:.4g}, {proof}; {costs}'
    console = Console(file=io.StringIO(), width=100)
    console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined]


def bits_figures(content: Content, folder: str) -> list[str]:
    """Draw sensitivities, the Pareto front, and widths along the depth.

    Args:
        content (dict): As in ``search.json``.
        folder (str): Where they go.

    Returns:
        list[str]: The files; none, with a warning, without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print_log(
            'No figures without matplotlib: pip install '
            "'mmrazor_brecq[report]'",
            'current',
            30,
        )
        return []
    paths = []
    draw: Any
    for name, draw in dict(
        sensitivity=_draw_sensitivity, front=_draw_front, depth=_draw_depth
    ).items():
        figure = Figure(figsize=(8, 4), layout='constrained')
        draw(figure.subplots(), content)
        paths.append(osp.join(folder, f'{name}.png'))
        figure.savefig(paths[-1], dpi=100)
    return paths


def _draw_sensitivity(axes: Any, content: Content) -> None:
    """A line for each width, over the layers."""
    for kind, marker in (('weight', 'o'), ('activation', 'x')):
        choices = [c for c in content['choices'] if c['kind'] == kind]
        if not choices:
            continue
        widths = list(choices[0]['loss'])
        for i, width in enumerate(widths):
            axes.plot(
                [c['loss'][width] for c in choices],
                marker=marker,
                markersize=3,
                linewidth=1 if kind == 'weight' else 0,
                color=f'C{i}',
                label=f'{width} bits, {kind}',
            )
    axes.set(
        xlabel='layer, by depth',
        ylabel='loss if quantized alone (nats an image)',
        yscale='log',
    )
    axes.legend(fontsize='x-small', ncols=2)


def _draw_front(axes: Any, content: Content) -> None:
    """Predicted loss over cost, with the uniform models."""
    name = content['cost']

    def points(results: Any) -> tuple[list[float], list[float]]:
        pairs = sorted((r['costs'][name], r['loss']) for r in results)
        return [x for x, _ in pairs], [y for _, y in pairs]

    axes.plot(*points(content['front']), '.-', label='mixed')
    uniform = [u for u in content['uniform'] if u['loss'] is not None]
    axes.plot(*points(uniform), 's', label='uniform')
    for model in uniform:
        at = model['costs'][name], model['loss']
        axes.annotate(f' {model["bits"]}', at, fontsize='small')
    axes.plot(*points(content['found']), '*', markersize=12, label='found')
    axes.set(
        xlabel=name,
        ylabel='predicted loss (nats an image)',
        xscale='log',
        yscale='log',
    )
    axes.legend()


def _draw_depth(axes: Any, content: Content) -> None:
    """The widths that were found, over the layers."""
    names = [layer['name'] for layer in content['layers']]
    for found in content['found']:
        for place, kind in enumerate(('weight', 'input')):
            widths = [found['bits'][name][place] for name in names]
            if None not in widths:
                axes.step(
                    range(len(names)),
                    widths,
                    where='mid',
                    linestyle='-' if place == 0 else ':',
                    label=f'{found["budget"]}, {kind}',
                )
    axes.set(xlabel='layer, by depth', ylabel='bits', yticks=range(2, 9))
    axes.legend(fontsize='x-small')
