"""Show what a search of bit widths found: a table and three figures."""

from __future__ import annotations

import io
import os.path as osp
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from mmengine.logging import print_log
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: What ``search.json`` has, or a part of it.
Content = Mapping[str, Any]


def bits_table(content: Content, found: Content) -> str:
    """Return each layer's parameters, bits, and part of the predicted loss.

    Args:
        content (dict): As in ``search.json``.
        found (dict): One of ``content['found']``.

    Returns:
        str: A table with a line for each layer.
    """
    table = Table('Layer', title=found['budget'])
    for name in ('Parameters', 'Weight', 'Input', 'Sensitivity (nats)'):
        table.add_column(name, justify='right')
    losses = _loss_by_layer(content, found)
    for layer in content['layers']:
        weight, activation = found['bits'][layer['name']]
        loss = losses.get(layer['name'])
        table.add_row(
            layer['name'],
            f'{layer["parameters"]:,}',
            '' if weight is None else f'{weight}',
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


def _loss_by_layer(content: Content, found: Content) -> dict[str, float]:
    """Return the loss of each layer that has a choice, weight plus input."""
    losses: dict[str, float] = {}
    for choice in content['choices']:
        layer = choice['layers'][0]
        weight, activation = found['bits'][layer]
        bits = weight if choice['kind'] == 'weight' else activation
        losses[layer] = losses.get(layer, 0.0) + choice['loss'][bits]
    return losses


def bits_figures(content: Content, folder: str) -> list[str]:
    """Draw sensitivities, the Pareto front, and the bits of every layer.

    Args:
        content (dict): As in ``search.json``.
        folder (str): Where the files go.

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
    for name, draw in (
        ('sensitivity', _draw_sensitivity),
        ('front', _draw_front),
        ('depth', _draw_depth),
    ):
        figure = Figure(figsize=(8, 4), layout='constrained')
        draw(figure.subplots(), content)
        paths.append(osp.join(folder, f'{name}.png'))
        figure.savefig(paths[-1], dpi=100)
    return paths


def _draw_sensitivity(axes: Axes, content: Content) -> None:
    """Draw a line over the layers for each bit width."""
    for kind, marker in (('weight', 'o'), ('activation', 'x')):
        choices = [c for c in content['choices'] if c['kind'] == kind]
        if not choices:
            continue
        for i, bits in enumerate(choices[0]['loss']):
            axes.plot(
                [c['loss'][bits] for c in choices],
                marker=marker,
                markersize=3,
                linewidth=1 if kind == 'weight' else 0,
                color=f'C{i}',
                label=f'{bits} bits, {kind}',
            )
    axes.set(
        xlabel='layer, by depth',
        ylabel='loss if quantized alone (nats an image)',
        yscale='log',
    )
    axes.legend(fontsize='x-small', ncols=2)


def _draw_front(axes: Axes, content: Content) -> None:
    """Draw predicted loss over cost, with the uniform models."""
    name = content['cost']

    def points(results: Iterable[Content]) -> tuple[list[float], list[float]]:
        pairs = sorted((r['costs'][name], r['loss']) for r in results)
        return [x for x, _ in pairs], [y for _, y in pairs]

    axes.plot(*points(content['front']), '.-', label='mixed')
    uniform = [u for u in content['uniform'] if u['loss'] is not None]
    axes.plot(*points(uniform), 's', label='uniform')
    for model in uniform:
        point = model['costs'][name], model['loss']
        axes.annotate(f' {model["bits"]}', point, fontsize='small')
    axes.plot(*points(content['found']), '*', markersize=12, label='found')
    axes.set(
        xlabel=name,
        ylabel='predicted loss (nats an image)',
        xscale='log',
        yscale='log',
    )
    axes.legend()


def _draw_depth(axes: Axes, content: Content) -> None:
    """Draw the bits that were found over the layers."""
    names = [layer['name'] for layer in content['layers']]
    for found in content['found']:
        for i, (kind, line) in enumerate((('weight', '-'), ('input', ':'))):
            bits = {
                k: pair[i]
                for k, pair in enumerate(found['bits'][n] for n in names)
                if pair[i] is not None
            }
            if bits:
                axes.step(
                    list(bits),
                    list(bits.values()),
                    where='mid',
                    linestyle=line,
                    label=f'{found["budget"]}, {kind}',
                )
    axes.set(xlabel='layer, by depth', ylabel='bits', yticks=range(2, 9))
    axes.legend(fontsize='x-small')
