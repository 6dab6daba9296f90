"""Search the bits of a config's model; mixed_precision.search solves it.

This module reads the config, the checkpoint and the budgets, and writes new
configs, figures and ``search.json``.
"""

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
    CostModel,
    ExactSearch,
    Pairwise,
    parse_budget,
    parse_uniform,
)
from ..mixed_precision.cost import Unmeasured
from ..registry import TASK_UTILS
from ..report import bits_figures, bits_table
from ..targets import FLOAT
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

#: A model with its bits, loss and costs, as an entry of ``search.json``.
Result = dict[str, Any]

#: Bits of the weights and of the activations of a uniform model.
UniformBits = tuple[int, Optional[int]]

#: Points of the Pareto front in the figure.
FRONT_POINTS = 10


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
    """Search the bits of a model's layers for each budget.

    Writes one config for each budget, ``search.json`` and figures into the
    folder of the run. Sensitivities that are not in their file are measured.

    Args:
        cfg (Config): From :func:`load_config`.
        source (str): The config file that the new configs inherit.
        checkpoint (str): The float checkpoint.
        budgets (list[str]): Budgets such as ``weight_bytes<=0.4MB``.
        equal_to (list[str]): Uniform models such as ``w3`` or ``w3a4``,
            whose sizes are budgets.
        sensitivity (str, optional): File of the sensitivities; by default
            ``sensitivity.json`` in the folder of the run.
        latency_table (str, optional): File for :class:`LatencyTable`.
        changed (bool): Whether ``cfg`` differs from ``source``. The new
            configs then inherit a copy of it.
        trust (bool): Whether loading the checkpoint may run code.

    Returns:
        list[str]: Paths of the new configs.

    Raises:
        ValueError: If no bit widths meet a budget. This is checked before
            anything is measured. The other budgets are searched first.
    """
    if cfg.launcher != 'none':
        raise ValueError(
            f'--launcher {cfg.launcher}: bits are searched in one process, '
            'leave --launcher out'
        )
    settings = MixedPrecision.of(cfg)
    costs = _build_costs(settings, latency_table)
    wanted, uniform = _parse_limits(costs, budgets, equal_to)
    with one_run(
        cfg,
        'once that is fixed, the same command continues after the last '
        'finished unit',
    ):
        runner = build_runner(cfg)
        model = bare_model(runner)
        with starting(runner):
            load_float(model, checkpoint, trust)
            images = calibration_images(runner, model)
            space = find_space(model, settings, images.batch(0)[:1])
            settings = space.settings
            # Costs need no sensitivities, so infeasible budgets show early.
            search = _search(space, settings, costs, Pairwise())
            wanted += [
                _size_of(search, text, *bits) for text, bits in uniform.items()
            ]
            feasible, refused = _feasible(search, wanted, runner)
        loss = _measure(runner, model, settings, images, space, sensitivity)
        search = _search(space, settings, costs, loss)
        results, timeouts = _solve_all(search, feasible)
        refused += timeouts
        if not results:
            raise ValueError('; '.join(refused))
        if changed:
            source = _write_base(cfg)
        paths = _write_results(runner, search, results, source)
    for path in paths:
        runner.logger.info(f'Quantize with tools/ptq.py {path} {checkpoint}')
    if refused:
        raise ValueError('; '.join(refused) + '. The other budgets are done')
    return paths


def _parse_limits(
    costs: Sequence[CostModel], budgets: Sequence[str], equal_to: Sequence[str]
) -> tuple[list[Budget], dict[str, UniformBits]]:
    """Return the budgets, and the bits of uniform models by their text.

    Raises:
        ValueError: If there is neither, or one is none.
    """
    known = {cost.name: cost for cost in costs}
    wanted = [parse_budget(text, known) for text in budgets]
    uniform = {text: parse_uniform(text) for text in equal_to}
    if not wanted and not uniform:
        raise ValueError('There is no budget: give --budget or --equal-to')
    return wanted, uniform


def _build_costs(
    settings: MixedPrecision, latency_table: Optional[str]
) -> list[CostModel]:
    """Build the cost models of a config, and that of a latency table."""
    configs = [
        dict(type='WeightBytes'),
        dict(type='BitOperations'),
        *settings.costs,
    ]
    if latency_table:
        configs.append(dict(type='LatencyTable', path=latency_table))
    return [TASK_UTILS.build(dict(config)) for config in configs]


def _search(
    space: Space,
    settings: MixedPrecision,
    costs: Sequence[CostModel],
    loss: Pairwise,
) -> BitSearch:
    """Build the search over the choices of a model."""
    return BitSearch(
        settings,
        space.shape,
        space.bits,
        space.choices,
        loss,
        costs,
        settings.searcher,
    )


def _feasible(
    search: BitSearch, budgets: Sequence[Budget], runner: Runner
) -> tuple[list[Budget], list[str]]:
    """Return the budgets that some bit widths meet, and the other errors.

    Raises:
        ValueError: If no budget can be met.
    """
    feasible, refused = [], []
    for budget in budgets:
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


def _measure(
    runner: RunOwner,
    model: BRECQ,
    settings: MixedPrecision,
    images: CachedBatches,
    space: Space,
    path: Optional[str],
) -> Pairwise:
    """Return the loss, after measuring what its file lacks."""
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
            model, settings, images, space, file, runner.seed, runner.logger
        )
    return file.loss


def _size_of(
    search: BitSearch, text: str, weight: int, activation: Optional[int]
) -> Budget:
    """Return the size of a uniform model as a budget.

    It limits the bytes of the weights, and the bit operations if the bits of
    activations are searched.
    """
    searched = {choice.kind for choice in search.choices}
    if activation is not None and 'activation' not in searched:
        raise ValueError(
            f'--equal-to {text!r} gives bits of activations, which are not '
            "searched: add 'activation' to `mixed_precision.kinds`, or leave "
            f'a{activation} out'
        )
    names = ['weight_bytes']
    if 'activation' in searched:
        names.append('bops')
    bits = search.uniform(weight, activation)
    limits = {
        name: search.costs[name].of(search.shape, bits) for name in names
    }
    return Budget(f'equal to {text}', limits)


def _solve_all(
    search: BitSearch, budgets: Sequence[Budget]
) -> tuple[list[Result], list[str]]:
    """Return the results of budgets, and errors of those out of time."""
    results, timeouts = [], []
    for budget in budgets:
        try:
            results.append(_solve(search, budget))
        except TimeoutError as error:
            timeouts.append(f'{budget.text!r}: {error}')
    return results, timeouts


def _solve(
    search: BitSearch, budget: Budget, searcher: Optional[ExactSearch] = None
) -> Result:
    """Return the best bits for a budget, as an entry of ``search.json``."""
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


def _front(search: BitSearch, name: str) -> list[Result]:
    """Return points between the smallest and the largest model.

    They are for a figure, so they need not be exact, and take little time.
    """
    low = search.smallest(name)
    high = search.costs_of(search.largest())[name]
    limits = np.geomspace(low * (1 + 1e-9), max(low, high), FRONT_POINTS)
    searcher = ExactSearch(time_limit=5, gap=1e-3)
    found = []
    for limit in map(float, limits):
        budget = Budget(f'{name}<={limit:.6g}', {name: limit})
        try:
            found.append(_solve(search, budget, searcher))
        except TimeoutError:
            continue
    return found


def _uniform(search: BitSearch) -> list[Result]:
    """Return the uniform models, to compare with."""
    found = []
    for bits in search.space.bits:
        model_bits = search.uniform(bits, bits)
        try:
            costs = search.costs_of(model_bits)
        except Unmeasured:  # The latency table lacks these bits.
            continue
        loss = search.loss_of(model_bits)
        found.append(dict(bits=bits, loss=loss, costs=costs))
    return found


def _write_results(
    runner: Runner, search: BitSearch, results: Sequence[Result], source: str
) -> list[str]:
    """Write configs, ``search.json`` and figures; return the configs."""
    paths = [_write(runner.cfg, source, result) for result in results]
    _report(runner, search, results)
    return paths


def _report(
    runner: Runner, search: BitSearch, results: Sequence[Result]
) -> None:
    """Write ``search.json`` and the figures, and log the tables."""
    name = next(iter(results[0]['limits']))
    content = dict(
        cost=name,
        layers=[
            dict(name=layer.name, parameters=layer.parameters)
            for layer in search.shape.layers
        ],
        choices=[
            dict(
                name=choice.name,
                kind=choice.kind,
                layers=choice.layers,
                loss=search.loss.alone[choice.name],
            )
            for choice in search.choices
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
    """Write the config, without the keys that a run adds to it."""
    base = {
        key: value
        for key, value in cfg.to_dict().items()
        if key not in ('work_dir', 'launcher', 'load_from', 'resume')
    }
    path = osp.join(cfg.work_dir, 'bits_base.py')
    write_kept(path, Config(base).pretty_text)
    return path


def _write(cfg: Config, source: str, result: Result) -> str:
    """Write a config that inherits ``source``, with the bits of a result."""
    text, quantization = result['budget'], cfg.model.get('quantization') or {}
    if osp.exists(source):  # Else it is `package::path`.
        source = osp.relpath(source, cfg.work_dir)
    before = []
    overrides = quantization.get('bit_overrides')
    if overrides is not None:
        # The bits below include those that the source overrides.
        before = ["            '_delete_': True,"] + [
            f'            {layer!r}: None,'
            for layer, bits in overrides.items()
            if bits in (None, FLOAT)
        ]
    lines = [
        f'# {text}: {_format_costs(result["costs"])};',
        f'# predicted loss {result["loss"]:.4g} nats an image.',
        f'_base_ = {source!r}',
        'model = dict(',
        '    quantization=dict(',
        '        bit_overrides={',
        *before,
        *(
            f'            {layer!r}: {_override(*pair)},'
            for layer, pair in result['bits'].items()
            if any(pair)
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


def _format_costs(costs: Mapping[str, float]) -> str:
    """Return the costs of a result as text."""
    return ', '.join(f'{name} {value:,.10g}' for name, value in costs.items())


def _override(weight: Optional[int], activation: Optional[int]) -> str:
    """Return the bits of a layer as a value of ``bit_overrides``."""
    bits = dict(weight=weight, activation=activation)
    given = [f'{kind}={b}' for kind, b in bits.items() if b is not None]
    return f'dict({", ".join(given)})'
