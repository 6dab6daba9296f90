"""From a config, a checkpoint and budgets to configs with widths."""

from __future__ import annotations

import os
import os.path as osp
import re
from collections.abc import Mapping, Sequence
from typing import Any, Optional

import numpy as np
from mmengine.config import Config
from mmengine.runner import Runner

from ..activations import CachedBatches
from ..algorithms import BRECQ
from ..checkpoint import keep_older, load_float, locked, save_json, write_kept
from ..functional import in_grad_mode
from ..mixed_precision import (
    BitSearch,
    Budget,
    ExactSearch,
    Pairwise,
    parse_budget,
    parse_uniform,
)
from ..mixed_precision.cost import Unmeasured
from ..registry import TASK_UTILS
from ..report import bits_figures, bits_table
from .launch import bare_model, build_runner, calibration_images
from .results import one_run
from .runners import RunOwner, starting
from .sensitivity_run import (
    MixedPrecision,
    SensitivityFile,
    Space,
    find_space,
    sensitivities,
)

#: Points of the Pareto front in the figure.
FRONT = 10


@in_grad_mode
def search_bits(
    cfg: Config,
    source: str,
    checkpoint: str,
    budgets: Sequence[str] = (),
    equal_to: Sequence[str] = (),
    sensitivity: Optional[str] = None,
    latency_table: Optional[str] = None,
    changed: bool = False,
    trust: bool = False,
) -> list[str]:
    """Search the widths of a model's layers.

    Leaves in the run's folder one config for each budget, ``search.json``,
    and figures. Sensitivities are measured if they are not known.

    Args:
        cfg (Config): From :func:`load_config`.
        source (str): The config file that the new ones inherit.
        checkpoint (str): The float checkpoint.
        budgets (list[str]): Such as ``weight_bytes<=0.4MB``.
        equal_to (list[str]): Uniform models, such as ``w3`` or ``w3a4``,
            to be no larger than.
        sensitivity (str, optional): File of the sensitivities; by default
            ``sensitivity.json`` in the run's folder.
        latency_table (str, optional): File for :class:`LatencyTable`.
        changed (bool): Whether ``cfg`` is more than what is in ``source``:
            the new ones then inherit a copy of it.
        trust (bool): Whether the checkpoint may run code.

    Returns:
        list[str]: The configs.

    Raises:
        ValueError: If no bit widths keep to a budget. This shows before
            anything is measured; the other budgets are searched first.
    """
    if cfg.launcher != 'none':
        raise ValueError(
            f'--launcher {cfg.launcher}: widths are searched in one process'
        )
    settings = MixedPrecision.of(cfg)
    costs = [
        TASK_UTILS.build(dict(cost))
        for cost in (
            dict(type='WeightBytes'),
            dict(type='BitOperations'),
            *settings.costs,
            *(
                [dict(type='LatencyTable', path=latency_table)]
                if latency_table
                else []
            ),
        )
    ]
    # What was written wrong shows before any work.
    known = {cost.name: cost for cost in costs}
    asked = [parse_budget(text, known) for text in budgets]
    alike = {text: parse_uniform(text) for text in equal_to}
    if not asked and not alike:
        raise ValueError('There is no budget: give --budget or --equal-to')
    with one_run(
        cfg,
        'once that is mended, the same command goes on after the last '
        'finished unit',
    ):
        runner = build_runner(cfg)
        model = bare_model(runner)
        with starting(runner):
            load_float(model, checkpoint, trust)
            images = calibration_images(runner, model)
            found = find_space(model, settings, images.batch(0)[:1])
            # Costs need no measurement, and what cannot be shows by them.
            search = _search(found, settings, costs, Pairwise())
            asked += [
                _size_of(search, text, *pair) for text, pair in alike.items()
            ]
            asked, refused = _feasible(search, asked, runner)
        loss = _measured(runner, model, settings, images, found, sensitivity)
        search = _search(found, settings, costs, loss)
        results = []
        for budget in asked:
            try:
                results.append(_solve(search, budget))
            except TimeoutError as error:
                refused.append(f'{budget.text!r}: {error}')
        if not results:
            raise ValueError('; '.join(refused))
        if changed:
            source = _write_base(cfg)
        paths = [
            _write(cfg, source, result['budget'], result) for result in results
        ]
        _report(runner, search, results)
        for path in paths:
            runner.logger.info(
                f'Quantize with tools/ptq.py {path} {checkpoint}'
            )
        if refused:
            raise ValueError(
                '; '.join(refused) + '. The other budgets are done'
            )
        return paths


def _search(
    found: Space,
    settings: MixedPrecision,
    costs: Sequence[Any],
    loss: Pairwise,
) -> BitSearch:
    return BitSearch(
        settings,
        found.shape,
        found.bits,
        found.choices,
        loss,
        costs,
        settings.searcher,
    )


def _feasible(
    search: BitSearch, asked: Sequence[Budget], runner: Runner
) -> tuple[list[Budget], list[str]]:
    """Tell budgets that some bit widths keep to from those that none do.

    Raises:
        ValueError: If there is none of the former.
    """
    feasible, refused = [], []
    for budget in asked:
        try:
            search.check(budget)
        except ValueError as error:
            runner.logger.error(str(error))
            refused.append(str(error))
        else:
            feasible.append(budget)
    if not feasible:
        raise ValueError('; '.join(refused))
    return feasible, refused


def _measured(
    runner: RunOwner,
    model: BRECQ,
    settings: MixedPrecision,
    images: CachedBatches,
    found: Space,
    path: Optional[str],
) -> Pairwise:
    """Measure the loss, as far as it is not known."""
    path = path or osp.join(runner.work_dir, 'sensitivity.json')
    identity = settings.identity(model, runner.cfg, images, runner.seed)
    os.makedirs(osp.dirname(osp.abspath(path)), exist_ok=True)
    with locked(
        f'{path}.lock', 'wait for it, or name another file with --sensitivity'
    ):
        with starting(runner):
            file = SensitivityFile(path, identity)
        runner.begin()
        sensitivities(
            model, settings, images, found, file, runner.seed, runner.logger
        )
    return file.loss


def _size_of(
    search: BitSearch, text: str, weight: int, activation: Optional[int]
) -> Budget:
    """The budget that a uniform model needs.

    Its bytes; if activations are searched, its bit operations as well.
    """
    searched = {choice.kind for choice in search.choices}
    if activation is not None and 'activation' not in searched:
        raise ValueError(
            f'--equal-to {text!r} names a width of activations, which are '
            "not searched: add 'activation' to `mixed_precision.kinds`, or "
            f'leave a{activation} out'
        )
    names = ['weight_bytes']
    if 'activation' in searched:
        names.append('bops')
    bits = search.uniform(weight, activation)
    limits = {n: search.costs[n].of(search.shape, bits) for n in names}
    return Budget(f'equal to {text}', limits)


def _solve(
    search: BitSearch, budget: Budget, searcher: Optional[ExactSearch] = None
) -> dict[str, Any]:
    solution = search.solve(budget, searcher)
    bits = search.found(solution.bits)
    return dict(
        budget=budget.text,
        limits=dict(budget.limits),
        bits=bits,
        loss=solution.loss,
        gap=solution.gap,
        seconds=round(solution.seconds, 2),
        costs=search.costs_of(bits),
    )


def _front(search: BitSearch, name: str) -> list[dict[str, Any]]:
    """Solutions between the smallest and the largest model, for a figure:
    nearly exact, and in little time.
    """
    low = search.smallest(name)
    high = search.costs_of(search.largest())[name]
    limits = np.geomspace(low * (1 + 1e-9), max(low, high), FRONT)
    searcher = ExactSearch(time_limit=5, gap=1e-3)
    found = []
    for limit in map(float, limits):
        budget = Budget(f'{name}<={limit:.6g}', {name: limit})
        try:
            found.append(_solve(search, budget, searcher))
        except TimeoutError:
            continue
    return found


def _uniform(search: BitSearch) -> list[dict[str, Any]]:
    """The uniform models, to compare with."""
    found = []
    for width in search.space.bits:
        bits = search.uniform(width, width)
        try:
            costs = search.costs_of(bits)
        except Unmeasured:  # Such a model is none of those to choose from.
            continue
        found.append(dict(bits=width, loss=search.loss_of(bits), costs=costs))
    return found


def _report(
    runner: Runner, search: BitSearch, results: Sequence[dict[str, Any]]
) -> None:
    name = next(iter(results[0]['limits']))
    content = dict(
        cost=name,
        layers=[
            dict(name=s.name, parameters=s.parameters)
            for s in search.shape.layers
        ],
        choices=[
            dict(
                name=c.name,
                kind=c.kind,
                layers=c.layers,
                loss=search.loss.alone[c.name],
            )
            for c in search.choices
        ],
        found=list(results),
        front=_front(search, name),
        uniform=_uniform(search),
    )
    path = osp.join(runner.work_dir, 'search.json')
    keep_older(path)
    save_json(content, path)
    for result in results:
        runner.logger.info('\n' + bits_table(content, result))
    for figure in bits_figures(content, runner.work_dir):
        runner.logger.info(f'Figure: {figure}')


def _write_base(cfg: Config) -> str:
    """Write the config itself, without what a run adds to it."""
    base = {
        key: value
        for key, value in cfg.to_dict().items()
        if key not in ('work_dir', 'launcher', 'load_from', 'resume')
    }
    path = osp.join(cfg.work_dir, 'bits_base.py')
    write_kept(path, Config(base).pretty_text)
    return path


def _write(
    cfg: Config, source: str, text: str, result: Mapping[str, Any]
) -> str:
    """Write a config that inherits ``source`` and has the widths."""
    quantization = cfg.model.get('quantization') or {}
    if osp.exists(source):  # Else it is `package::path`.
        source = osp.relpath(source, cfg.work_dir)
    # Those of the source are among the widths below.
    replaces = quantization.get('bit_overrides') is not None
    lines = [
        f'# {text}: {_costs(result["costs"])};',
        f'# predicted loss {result["loss"]:.4g} nats an image.',
        f'_base_ = {source!r}',
        'model = dict(',
        '    quantization=dict(',
        '        bit_overrides={',
        *["            '_delete_': True,"] * replaces,
        *(
            f'            {layer!r}: {_override(*pair)},'
            for layer, pair in result['bits'].items()
        ),
        '        }',
        '    )',
        ')',
        '',
    ]
    name = re.sub(r'[^\w.]+', '_', text.replace('<=', '_')).strip('_')
    path = osp.join(cfg.work_dir, f'bits_{name}.py')
    write_kept(path, '\n'.join(lines))
    return path


def _costs(costs: Mapping[str, float]) -> str:
    return ', '.join(f'{name} {value:,.10g}' for name, value in costs.items())


def _override(weight: int, activation: Optional[int]) -> str:
    if activation is None:
        return f'dict(weight={weight})'
    return f'dict(weight={weight}, activation={activation})'
