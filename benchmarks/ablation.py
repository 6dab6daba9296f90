"""What does each part of the recipe bring?

    python benchmarks/ablation.py --seeds 0 1 2 --jobs 2

One row a variant: the default with one thing changed, mean and spread of the
top-1 accuracy over the seeds, for both demo models and all low-bit settings;
the last column is the mean difference to the default. What is measured
already, in --out, is not measured again, so it can be done in pieces
(--variants, --models, --settings).
"""

from __future__ import annotations

import argparse
import itertools
import os.path as osp
import statistics
from concurrent.futures import ThreadPoolExecutor

from accuracy import FOLDERS, mean_and_spread, measure

SETTINGS = ['w4a4', 'w3a3', 'w2a4', 'w2a2', 'w2a32']
BLOCKS = 'model.reconstructor'
OBJECTIVE = f'{BLOCKS}.objective'
WEIGHT = 'model.quantization.weight'
ACTIVATION = 'model.quantization.activation'
#: Name of a variant, and what it changes.
VARIANTS: dict[str, list[str]] = {
    'default': [],
    'plain squared error': [f'{OBJECTIVE}.type=MSE'],
    'Fisher untempered': [f'{OBJECTIVE}.temper=1.0'],
    'Fisher of each image': [f'{OBJECTIVE}.per_sample=True'],
    'Fisher with all entries': [f'{OBJECTIVE}.type=FisherFull'],
    'weight steps fixed': [f'{WEIGHT}.learn_scale=False'],
    'weight steps faster': [f'{BLOCKS}.weight_scale_lr=0.1'],
    'rounding half as fast': [f'{BLOCKS}.rounding_lr=0.1'],
    'without QDrop': [f'{ACTIVATION}.drop_prob=0.0'],
    'layers for units': ['model.partition.type=LayerPartition'],
    '600 iterations': [f'{BLOCKS}.iterations=600'],
    'a last pass of 150': [
        f'{BLOCKS}.refiner.type=NetworkRefiner',
        f'{BLOCKS}.refiner.iterations=150',
    ],
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--models', nargs='+', default=list(FOLDERS))
    parser.add_argument('--settings', nargs='+', default=SETTINGS)
    parser.add_argument('--variants', nargs='+', default=list(VARIANTS))
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    parser.add_argument('--jobs', type=int, default=1)
    parser.add_argument('--out', default='work_dirs/ablation')
    args = parser.parse_args()
    cells = list(itertools.product(args.models, args.settings))
    names = ['default', *(v for v in args.variants if v != 'default')]

    def top1(run: tuple) -> float:
        variant, (model, setting), seed = run
        changes = list(VARIANTS[variant])
        if setting.endswith('a32'):
            # There is nothing of activations to change.
            changes = [x for x in changes if not x.startswith(ACTIVATION)]
        out = osp.join(osp.abspath(args.out), variant.replace(' ', '-'))
        report = measure(model, setting, seed, out, changes)
        return report['quantized']['accuracy/top1']

    runs = list(itertools.product(names, cells, args.seeds))
    with ThreadPoolExecutor(args.jobs) as pool:
        found = dict(zip(runs, pool.map(top1, runs)))

    heads = [f'{model} {setting.upper()}' for model, setting in cells]
    print(f'| Variant | {" | ".join(heads)} | Mean difference |')
    print(f'| :-- |{" --: |" * (len(cells) + 1)}')
    means = {}
    for name in names:
        row = [name]
        for cell in cells:
            values = [found[name, cell, seed] for seed in args.seeds]
            means[name, cell] = statistics.mean(values)
            row.append(mean_and_spread(values))
        difference = statistics.mean(
            means[name, cell] - means['default', cell] for cell in cells
        )
        print(f'| {" | ".join(row)} | {difference:+.2f} |')


if __name__ == '__main__':
    main()
