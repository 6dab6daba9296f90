"""How does block reconstruction compare with training at low precision?

    FASHION_MNIST=FOLDER python benchmarks/qat.py --settings w4a4 --epochs 8

Training (QAT) starts from nearest rounding, and takes all 60,000 images and
their labels; reconstruction takes 1,024 images without labels. Prints a table
for every model, setting and seed: top-1 accuracy, and the CPU seconds of the
whole commands on one thread. What is measured already, in --out, is not
measured again. --figure draws accuracy over CPU seconds.
"""

from __future__ import annotations

import argparse
import glob
import itertools
import json
import os
import os.path as osp
import resource
import shutil
import subprocess
import sys
from dataclasses import dataclass

from accuracy import FOLDERS, ROOT
from accuracy import schedule_options as options_of

SETTINGS = ['w4a4', 'w2a4', 'w2a2']
NEAREST = "{'_delete_': True, 'type': 'NearestRounding'}"
CONFIG = """_base_ = [
    '{root}/configs/brecq/{folder}/brecq_{model}_{setting}_fashion-mnist.py',
    '{root}/configs/_base_/datasets/fashion_mnist_train.py',
    '{root}/configs/_base_/fine_tuning.py',
]
"""


@dataclass
class Case:
    """A model, its bits and a seed, and where their results are kept."""

    model: str
    setting: str
    seed: int
    out: str

    @property
    def folder(self) -> str:
        """Return the folder of all results."""
        name = f'{self.model}_{self.setting}_seed{self.seed}'
        return osp.join(self.out, name)

    @property
    def config(self) -> str:
        """Return the config that trains, after writing it."""
        path = osp.join(self.folder, f'{self.model}_{self.setting}.py')
        os.makedirs(self.folder, exist_ok=True)
        with open(path, 'w') as file:
            values = dict(vars(self), root=ROOT, folder=FOLDERS[self.model])
            file.write(CONFIG.format(**values))
        return path

    def quantized(self, name: str, options: list[str]) -> dict:
        """Return what `tools/ptq.py` reaches with changes to the config."""
        folder = osp.join(self.folder, name)
        return _cached(folder, lambda: self._quantize(folder, options))

    def _quantize(self, folder: str, options: list[str]) -> dict:
        seconds = self._run(
            'ptq',
            f'demo/{self.model}_fashion-mnist.pth',
            folder,
            options,
            '--no-eval',
        )
        self._run('test', osp.join(folder, 'quantized.pth'), f'{folder}-test')
        (path,) = glob.glob(f'{folder}-test/*/*.json')
        with open(path) as file:
            top1 = json.load(file)['accuracy/top1']
        return dict(seconds=seconds, top1=[top1])

    def trained(self, name: str, start: str, epochs: int, rate: float) -> dict:
        """Return what training of a quantized checkpoint reaches.

        Args:
            name (str): Folder of the result.
            start (str): Folder of the checkpoint.
            epochs (int): Passes over the training set.
            rate (float): Learning rate.
        """
        folder = osp.join(self.folder, name)
        options = [
            f'train_cfg.max_epochs={epochs}',
            f'param_scheduler.T_max={epochs}',
            f'optim_wrapper.optimizer.lr={rate}',
        ]

        def train() -> dict:
            checkpoint = osp.join(self.folder, start, 'quantized.pth')
            seconds = self._run('finetune', checkpoint, folder, options)
            (path,) = glob.glob(f'{folder}/*/vis_data/scalars.json')
            with open(path) as file:
                values = [json.loads(line) for line in file]
            key = 'accuracy/top1'
            top1 = [line[key] for line in values if key in line]
            return dict(seconds=seconds, top1=top1)

        return _cached(folder, train)

    def _run(
        self,
        tool: str,
        checkpoint: str,
        folder: str,
        options: tuple | list = (),
        *more: str,
    ) -> float:
        """Run a tool, and return its CPU seconds."""
        shutil.rmtree(folder, ignore_errors=True)
        command = [sys.executable, f'tools/{tool}.py', self.config]
        command += [checkpoint, '--work-dir', folder, *more, '--cfg-options']
        command += [f'randomness.seed={self.seed}', *options]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        with open(f'{folder}.log', 'w') as log:
            subprocess.run(
                command,
                cwd=ROOT,
                check=True,
                env=dict(os.environ, OMP_NUM_THREADS='1'),
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return sum(
            getattr(after, key) - getattr(before, key)
            for key in ('ru_utime', 'ru_stime')
        )


def _cached(folder: str, measure) -> dict:  # noqa: ANN001
    """Return what was measured, or measure it."""
    path = f'{folder}.json'
    if not osp.exists(path):
        found = measure()
        with open(path, 'w') as file:
            json.dump(found, file)
    with open(path) as file:
        return json.load(file)


def rows(case: Case, args: argparse.Namespace) -> dict[str, dict]:
    """Return the results of a case, by their names in the table."""
    nearest = [f'model.reconstructor={NEAREST}']
    found = {'Nearest rounding': case.quantized('nearest', nearest)}
    if args.epochs:
        found[f'QAT, {args.epochs} epochs'] = case.trained(
            f'qat-{args.epochs}', 'nearest', args.epochs, args.rate
        )
    for name in args.schedules:
        options = [f'{k}={v}' for k, v in options_of(name).items()]
        found[f'BRECQ, `{name}`'] = case.quantized(name, options)
    if not args.tuning_epochs:
        return found
    first = args.schedules[0]
    tuned = case.trained(
        f'{first}-tuned', first, args.tuning_epochs, args.tuning_rate
    )
    found[f'BRECQ, `{first}`, then {args.tuning_epochs} epoch'] = dict(
        tuned,
        seconds=tuned['seconds'] + found[f'BRECQ, `{first}`']['seconds'],
    )
    return found


def draw(results: list[tuple[Case, dict]], path: str) -> None:
    """Draw accuracy over CPU seconds, a panel for each case."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(
        1, len(results), figsize=(4 * len(results), 3.4), squeeze=False
    )
    for axis, (case, found) in zip(axes[0], results):
        best = max(max(row['top1']) for row in found.values())
        for name, row in found.items():
            top1 = row['top1']
            if max(top1) < best - 5:  # It would be outside of the panel.
                continue
            share = [(i + 1) / len(top1) for i in range(len(top1))]
            axis.plot(
                [row['seconds'] * part for part in share],
                top1,
                '.-' if len(top1) > 1 else 'o',
                label=name.replace('`', ''),
            )
        axis.set(
            title=f'{case.model}, {case.setting.upper()}',
            xlabel='CPU seconds',
            xscale='log',
            ylim=(best - 5, best + 0.5),
        )
    axes[0][0].set_ylabel('Top-1 accuracy (%)')
    axes[0][0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--models', nargs='+', default=list(FOLDERS))
    parser.add_argument('--settings', nargs='+', default=SETTINGS)
    parser.add_argument('--seeds', nargs='+', type=int, default=[0])
    parser.add_argument('--epochs', type=int, default=8, help='0 for none')
    parser.add_argument('--rate', type=float, default=1e-3)
    parser.add_argument(
        '--tuning-epochs', type=int, default=1, help='0 for none'
    )
    parser.add_argument('--tuning-rate', type=float, default=1e-3)
    parser.add_argument('--schedules', nargs='+', default=['fast', 'default'])
    parser.add_argument('--out', default='work_dirs/qat')
    parser.add_argument('--figure', help='path of a picture')
    args = parser.parse_args()
    out = osp.abspath(args.out)
    print('| Model | | Top-1 (%) | CPU s |\n| :-- | :-- | --: | --: |')
    results = []
    for values in itertools.product(args.models, args.settings, args.seeds):
        case = Case(*values, out)
        found = rows(case, args)
        results.append((case, found))
        for name, row in found.items():
            print(
                f'| {case.model}, {case.setting.upper()} | {name} '
                f'| {row["top1"][-1]:.2f} | {row["seconds"]:,.0f} |',
                flush=True,
            )
    if args.figure:
        draw(results, args.figure)


if __name__ == '__main__':
    main()
