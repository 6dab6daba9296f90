"""How accurate are the demo models at each setting, over several seeds?

    python benchmarks/accuracy.py --seeds 0 1 2 --jobs 2

Runs tools/ptq.py once for every model, setting and seed, and prints one
table a model: mean and spread of the top-1 accuracy, and median seconds.
What is measured already, in --out, is not measured again.
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
from concurrent.futures import ThreadPoolExecutor

ROOT = osp.dirname(osp.dirname(osp.abspath(__file__)))
MODELS = {'resnet18': 'resnet', 'mobilenet-v2': 'mobilenet_v2'}
SETTINGS = ['w8a8', 'w4a4', 'w3a3', 'w2a4', 'w2a2', 'w4a32', 'w2a32']


def measure(model: str, setting: str, seed: int, out: str, more: list) -> dict:
    """The report of one run."""
    folder = osp.join(out, f'{model}_{setting}_seed{seed}')
    report = osp.join(folder, 'report.json')
    if not osp.exists(report):
        config = f'configs/brecq/{MODELS[model]}/brecq_{model}_{setting}'
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


def row(setting: str, reports: list[dict]) -> str:
    """One line of a table."""
    top1 = {
        key: [report[key]['accuracy/top1'] for report in reports]
        for key in ('float', 'nearest', 'quantized')
    }
    top5 = statistics.mean(r['quantized']['accuracy/top5'] for r in reports)
    ours = top1['quantized']
    seconds = statistics.median(
        report['seconds']['reconstruct'] for report in reports
    )
    size = reports[0]['weight_bytes']['quantized']
    return (
        f'| {setting.upper()} | {top1["float"][0]:.2f} '
        f'| {statistics.mean(top1["nearest"]):.2f} '
        f'| **{statistics.mean(ours):.2f}** ± {statistics.pstdev(ours):.2f} '
        f'| {top5:.2f} | {size / 1e6:.2f} | {seconds:.0f} |'
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--models', nargs='+', default=list(MODELS))
    parser.add_argument('--settings', nargs='+', default=SETTINGS)
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    parser.add_argument('--jobs', type=int, default=1)
    parser.add_argument('--out', default='work_dirs/accuracy')
    parser.add_argument(
        '--cfg-options', nargs='+', default=[], help='as for tools/ptq.py'
    )
    args = parser.parse_args()
    runs = list(itertools.product(args.models, args.settings, args.seeds))
    out = osp.abspath(args.out)
    with ThreadPoolExecutor(args.jobs) as pool:
        reports = dict(
            zip(
                runs,
                pool.map(
                    lambda run: measure(*run, out, args.cfg_options), runs
                ),
            )
        )
    for model in args.models:
        print(f'\n{model}, seeds {args.seeds}, one core\n')
        print(
            '| Bits | Float | Nearest | BRECQ | Top-5 | MB | Seconds |\n'
            '| :-- | --: | --: | --: | --: | --: | --: |'
        )
        for setting in args.settings:
            print(
                row(setting, [reports[model, setting, s] for s in args.seeds])
            )


if __name__ == '__main__':
    main()
