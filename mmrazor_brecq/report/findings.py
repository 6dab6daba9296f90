"""Findings of a report: what went wrong, where, and which key addresses it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Callable, NamedTuple

from .tables import Report, setback

#: Share of the whole loss from which a unit or a layer is named.
LARGE_SHARE = 0.2
#: Fraction of the elements that may lie beyond the grid.
CLIPPED = 0.02
#: Fraction of the grid below which it counts as hardly used.
USED = 0.55
#: Fraction of elements that all have to be on few integers of a grid, and
#: how many of its integers are few.
MOST, FEW = 0.99, 1 / 16
#: Places that a finding lists.
SHOWN = 8


class Place(NamedTuple):
    """Where a finding holds.

    Attributes:
        name (str): A unit, a layer, an image, or ''.
        detail (str): What is the matter there.
    """

    name: str
    detail: str


@dataclass(frozen=True)
class Check:
    """Condition that a report is checked for, and what to do about it.

    Attributes:
        title (str): What is the matter.
        cure (str): Line of a config; ``{name}`` stands for the first place.
        why (str): What the line does.
        find (callable): Returns the places in a report, the worst first.
    """

    title: str
    cure: str
    why: str
    find: Callable[[Report], Iterator[Place]]


class Finding(NamedTuple):
    """A check that found something.

    Attributes:
        title (str): What is the matter.
        places (list[Place]): Where, the worst first, at most ``SHOWN``.
        more (int): Number of places that are not listed.
        cure (str): A line of a config.
        why (str): What the line does.
    """

    title: str
    places: list[Place]
    more: int
    cure: str
    why: str


def findings(report: Report) -> list[Finding]:
    """Return what the checks find in a report.

    Args:
        report (dict): As in ``report.json``, or as of ``quantize``.
    """
    found = []
    for check in CHECKS:
        places = list(check.find(report))
        if places:
            cure = check.cure.replace('{name}', repr(places[0].name))
            found.append(
                Finding(
                    check.title,
                    places[:SHOWN],
                    max(0, len(places) - SHOWN),
                    cure,
                    check.why,
                )
            )
    return found


def shares(report: Report) -> dict[str, float]:
    """Return the share of each unit in what all cost alone, 0 to 1."""
    costs = {
        unit['name']: max(0.0, unit['cost'])
        for unit in report.get('units', ())
        if unit.get('cost') is not None and math.isfinite(unit['cost'])
    }
    total = sum(costs.values())
    return {name: cost / total for name, cost in costs.items() if total > 0}


def _worse_than_nearest(report: Report) -> Iterator[Place]:
    if {'float', 'nearest', 'quantized'} <= report.keys():
        if advice := setback(report):
            yield Place('', advice.split(':')[0])
    errors = report.get('divergence') or {}
    if errors.get('quantized', 0.0) > errors.get('nearest', float('inf')):
        yield Place(
            '',
            f'outputs on held-out images diverge by {errors["quantized"]:.3g} '
            f'nats, with nearest rounding by {errors["nearest"]:.3g}',
        )


def _large_shares(report: Report) -> Iterator[Place]:
    found = shares(report)
    # Of few units, each has a large share anyway.
    least = max(LARGE_SHARE, 1.5 / max(1, len(found)))
    for name, share in sorted(found.items(), key=lambda pair: -pair[1]):
        if share > least:
            yield Place(_pattern(report, name), f'{share:.0%} of the loss')


def _pattern(report: Report, unit: str) -> str:
    """Return a pattern of `bit_overrides` that matches a unit's layers."""
    layers = next(u['layers'] for u in report['units'] if u['name'] == unit)
    return unit if unit in layers else f'{unit}.*' if unit else '*'


def _not_better(report: Report) -> Iterator[Place]:
    for unit in report.get('units', ()):
        if not unit['accepted'] and unit['note']:
            if not unit['note'].startswith('error is negligible'):
                yield Place(unit['name'], unit['note'])


def _inputs(report: Report) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the quantized inputs, each once, with a layer that reads it."""
    seen = set()
    for layer in report.get('layers', ()):
        found = layer['input'] if layer['weight'] else None
        if found and 'counts' in found and found['quantizer'] not in seen:
            seen.add(found['quantizer'])
            yield layer['name'], found


def _clipped(report: Report) -> Iterator[Place]:
    places = [
        (x['clipped'], name)
        for name, x in _inputs(report)
        if x['clipped'] > CLIPPED
    ]
    for clipped, name in sorted(places, reverse=True):
        yield Place(name, f'{clipped:.1%} of its input beyond the range')


def _wasted(report: Report) -> Iterator[Place]:
    for name, x in _inputs(report):
        if x['low'] == x['high']:
            continue
        low, high = max(x['low'], x['from']), min(x['high'], x['to'])
        used = (high - low + 1) / (x['to'] - x['from'] + 1)
        if used < USED:
            yield Place(name, f'its input uses {used:.0%} of the integers')


def _crowded(report: Report) -> Iterator[Place]:
    for name, x in _inputs(report):
        levels = x['to'] - x['from'] + 1
        size = (x['high'] - x['low']) / len(x['counts'])
        needed, left = 0, MOST * sum(x['counts'])
        for count in sorted(x['counts'], reverse=True):
            if left > 0:
                needed, left = needed + 1, left - count
        few = max(2.0, levels * FEW)
        # Bins wider than the few integers cannot tell.
        if x['low'] < x['high'] and needed * size <= few and levels > 16:
            yield Place(
                name,
                f'{MOST:.0%} of its input on about '
                f'{max(1, round(needed * size))} of {levels} integers',
            )


def _constant(report: Report) -> Iterator[Place]:
    for name, x in _inputs(report):
        if x['low'] == x['high']:
            yield Place(name, 'its input is the same everywhere')


def _lost_channels(report: Report) -> Iterator[Place]:
    for layer in report.get('layers', ()):
        if lost := (layer['weight'] or {}).get('lost_channels'):
            yield Place(
                layer['name'],
                f'{lost} output channel{"s" * (lost > 1)} all zero after '
                'rounding',
            )


def _outliers(report: Report) -> Iterator[Place]:
    for image in report.get('left_out') or ():
        name = image.get('name') or f'image {image["image"]}'
        yield Place(
            name,
            f'largest value {image["largest"]:.4g}, {image["times"]:.3g} '
            'times that of all others; left out',
        )


def _unreadable(report: Report) -> Iterator[Place]:
    for image, reason in dict(report.get('unreadable') or {}).items():
        yield Place(image, f'{reason}; left out')


#: All checks, what costs most first.
CHECKS = (
    Check(
        'Learning made it worse than nearest rounding',
        'test_cfg.calibration.num_images=1024',
        'more images, or more `model.reconstructor.iterations`; else keep '
        "`model.reconstructor.type='NearestRounding'`",
        _worse_than_nearest,
    ),
    Check(
        'A calibration image is far outside the others',
        'test_cfg.calibration.dataloader.dataset.pipeline=[...]',
        'normalize it like the others, or remove its file',
        _outliers,
    ),
    Check(
        'Calibration images cannot be read',
        'test_cfg.calibration.dataloader.dataset.data_root=...',
        'repair or remove the files',
        _unreadable,
    ),
    Check(
        'A unit alone costs more than a fifth of the loss',
        'model.quantization.bit_overrides={{name}: 8}',
        'gives its layers more bits (None leaves them in float)',
        _large_shares,
    ),
    Check(
        'Units got no better than with nearest rounding',
        'model.reconstructor.iterations=200',
        'longer learning; with few images also more of them '
        '(`test_cfg.calibration.num_images`)',
        _not_better,
    ),
    Check(
        'Inputs are clipped',
        'model.quantization.bit_overrides={{name}: dict(activation=8)}',
        'more bits for the input; or cover the whole range with '
        "`model.quantization.activation.observer=dict(type='MinMaxObserver')`",
        _clipped,
    ),
    Check(
        'Much of the range of integers is wasted',
        'model.quantization.activation.symmetric=False',
        'a zero point lets the integers cover what occurs, and no more',
        _wasted,
    ),
    Check(
        'Nearly all values lie on a few integers',
        'model.quantization.activation.observer=dict(type="LpObserver", p=1)',
        'clips rare large values, so that the many small ones get more '
        'integers',
        _crowded,
    ),
    Check(
        'Channels became zero',
        'model.quantization.bit_overrides={{name}: dict(weight=8)}',
        'more bits for the weight; with one scale for the layer also '
        '`model.quantization.weight.per_channel=True`',
        _lost_channels,
    ),
    Check(
        'Inputs are constant',
        'model.quantization.bit_overrides={{name}: None}',
        'a layer whose input never varies does nothing: check the network, '
        'or leave it in float',
        _constant,
    ),
)
