"""How accurate are the demo models at each setting, over several seeds?

    python benchmarks/accuracy.py --seeds 0 1 2 --jobs 2

Runs tools/ptq.py once for every model, setting and seed, and prints one
table: mean and spread of the top-1 accuracy, and the median seconds of the
reconstruction on one core.
What is measured already, in --out, is not measured again: give another
schedule (--schedule fast, --schedule best) an --out of its own.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import os.path as osp
import statistics
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from mmengine.analysis import get_model_complexity_info
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, init_default_scope

ROOT = osp.dirname(osp.dirname(osp.abspath(__file__)))
FOLDERS = {'resnet18': 'resnet', 'mobilenet-v2': 'mobilenet_v2'}
SETTINGS = ['w8a8', 'w4a8', 'w4a4', 'w3a3', 'w2a4', 'w2a2', 'w4a32', 'w2a32']


def measure(model: str, setting: str, seed: int, out: str, more: list) -> dict:
    """The report of one run."""
    folder = osp.join(out, f'{model}_{setting}_seed{seed}')
    report = osp.join(folder, 'report.json')
    if not osp.exists(report):
        config = f'configs/brecq/{FOLDERS[model]}/brecq_{model}_{setting}'
        subprocess.run(
            [
                *(sys.executable, 'tools/ptq.py'),
                *(f'{config}_fashion-mnist.py', '--work-dir', folder),
                f'demo/{model}_fashion-mnist.pth',
                *('--cfg-options', f'randomness.seed={seed}', *more),
            ],
            cwd=ROOT,
            check=True,
            env=dict(os.environ, OMP_NUM_THREADS='1'),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    with open(report) as file:
        return json.load(file)


def schedule_of(name: str) -> ConfigDict:
    """What configs/_base_/schedules says under a name."""
    return Config.fromfile(
        f'{ROOT}/configs/_base_/schedules/{name}.py'
    ).schedule


def schedule_options(name: str) -> dict[str, Any]:
    """What a schedule says, as changes to a config."""

    def flat(prefix: str, values: dict) -> Iterator[tuple[str, Any]]:
        for key, value in values.items():
            if isinstance(value, dict):
                yield from flat(f'{prefix}.{key}', value)
            else:
                yield f'{prefix}.{key}', value

    return dict(flat('model.reconstructor', schedule_of(name)))


def describe(model: str) -> str:
    """Parameters and multiply-adds of the float model, in millions."""
    cfg = Config.fromfile(f'{ROOT}/configs/float/{model}_fashion-mnist.py')
    init_default_scope('mmcls')
    network = MODELS.build(cfg.model).eval()
    info = get_model_complexity_info(network, (3, 64, 64))
    return f'{info["params"] / 1e6:.2f} | {info["flops"] / 1e6:.0f}'


def mean_and_spread(values: list[float]) -> str:
    """Of one number, measured with several seeds."""
    return f'{statistics.mean(values):.2f} ± {statistics.pstdev(values):.2f}'


def row(model: str, setting: str, size: str, reports: list[dict]) -> str:
    """One line of a table."""
    top1 = {
        key: [report[key]['accuracy/top1'] for report in reports]
        for key in ('float', 'nearest', 'quantized')
    }
    top5 = statistics.mean(r['quantized']['accuracy/top5'] for r in reports)
    seconds = statistics.median(
        report['seconds']['reconstruct'] for report in reports
    )
    ours = top1['quantized']
    spread = f' ± {statistics.pstdev(ours):.2f}' if len(ours) > 1 else ''
    folder = f'configs/brecq/{FOLDERS[model]}'
    config = f'{folder}/brecq_{model}_{setting}_fashion-mnist.py'
    checkpoint = f'demo/{model}_fashion-mnist.pth'
    return (
        f'| {model}, {setting.upper()} | {size} | {top1["float"][0]:.2f} '
        f'| {statistics.mean(top1["nearest"]):.2f} '
        f'| **{statistics.mean(ours):.2f}**{spread} | {top5:.2f} '
        f'| {reports[0]["weight_bytes"]["quantized"] / 1e6:.2f} '
        f'| {seconds:.0f} | [config]({config}) | [float]({checkpoint}) |'
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--models', nargs='+', default=list(FOLDERS))
    parser.add_argument('--settings', nargs='+', default=SETTINGS)
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    parser.add_argument('--jobs', type=int, default=1)
    parser.add_argument('--schedule', default='default')
    parser.add_argument('--out', default='work_dirs/accuracy')
    parser.add_argument(
        '--cfg-options', nargs='+', default=[], help='as for tools/ptq.py'
    )
    args = parser.parse_args()
    runs = list(itertools.product(args.models, args.settings, args.seeds))
    out = osp.abspath(args.out)
    schedule = schedule_options(args.schedule)
    more = [f'{key}={value}' for key, value in schedule.items()]
    more += args.cfg_options
    with ThreadPoolExecutor(args.jobs) as pool:
        reports = dict(
            zip(
                runs,
                pool.map(lambda run: measure(*run, out, more), runs),
            )
        )
    print(
        '| Model | Params (M) | Flops (M) | Float | Nearest | Top-1 | Top-5 '
        '| Weights (MB) | Seconds | Config | Checkpoint |\n'
        '| :-- | --: | --: | --: | --: | --: | --: | --: | --: | :-- | :-- |'
    )
    for model, setting in itertools.product(args.models, args.settings):
        found = [reports[model, setting, seed] for seed in args.seeds]
        print(row(model, setting, describe(model), found))


if __name__ == '__main__':
    main()
