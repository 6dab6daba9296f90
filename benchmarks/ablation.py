"""What does each part of the recipe bring?

    python benchmarks/ablation.py --schedule fast --seeds 0 1 2

One row a variant: a schedule with one thing changed, mean and spread of the
top-1 accuracy over the seeds, for both demo models and all low-bit settings;
the last columns are the mean differences to the schedule as it is, by model.
What is measured already, in --out, is not measured again, so it can be done
in pieces (--variants, --models, --settings).
"""

from __future__ import annotations

import argparse
import itertools
import os.path as osp
import statistics

import torch
from accuracy import FOLDERS, mean_and_spread, schedule_options
from quantize import add_row_options, config_of, quantize

SETTINGS = ['w4a4', 'w3a3', 'w2a4', 'w2a2', 'w2a32']
BLOCKS = 'model.reconstructor'
OBJECTIVE = f'{BLOCKS}.objective'
WEIGHT = 'model.quantization.weight'
ACTIVATION = 'model.quantization.activation'
AS_IT_IS = 'as it is'
#: Name of a variant, and what it changes.
VARIANTS: dict[str, dict] = {
    AS_IT_IS: {},
    'plain squared error': {OBJECTIVE: dict(type='MSE', _delete_=True)},
    'Fisher of low rank': {f'{OBJECTIVE}.type': 'FisherLowRank'},
    'diagonal of the Fisher': {f'{OBJECTIVE}.type': 'FisherDiag'},
    'Fisher untempered': {f'{OBJECTIVE}.temper': 1.0},
    'Fisher of each image': {
        f'{OBJECTIVE}.type': 'FisherDiag',
        f'{OBJECTIVE}.per_sample': True,
    },
    'weight steps fixed': {f'{WEIGHT}.learn_scale': False},
    'weight steps faster': {f'{BLOCKS}.weight_scale_lr': 0.1},
    'rounding at 0.1': {f'{BLOCKS}.rounding_lr': 0.1},
    'without QDrop': {f'{ACTIVATION}.drop_prob': 0.0},
    'QDrop of a quarter': {f'{ACTIVATION}.drop_prob': 0.25},
    'QDrop of a half': {f'{ACTIVATION}.drop_prob': 0.5},
    'layers for units': {'model.partition.type': 'LayerPartition'},
    'stages for units': {'model.partition.type': 'StagePartition'},
    'a short last pass': {
        f'{BLOCKS}.refiner.type': 'NetworkRefiner',
        f'{BLOCKS}.refiner.iterations': 150,
    },
    'six times the iterations': {f'{BLOCKS}.iterations': 144},
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--models', nargs='+', default=list(FOLDERS))
    parser.add_argument('--settings', nargs='+', default=SETTINGS)
    parser.add_argument('--variants', nargs='+', default=list(VARIANTS))
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    parser.add_argument('--schedule', default='fast')
    add_row_options(parser, 'work_dirs/ablation')
    args = parser.parse_args()
    torch.set_num_threads(1)
    schedule = {**schedule_options(args.schedule), **args.cfg_options}
    cells = list(itertools.product(args.models, args.settings))

    def top1(variant: str, model: str, setting: str, seed: int) -> float:
        options = {**schedule, **VARIANTS[variant]}
        if setting.endswith('a32'):
            # There is nothing of activations to change.
            options = {
                key: value
                for key, value in options.items()
                if not key.startswith(ACTIVATION)
            }
        name = f'{model}_{setting}_{variant}_seed{seed}.json'
        path = osp.join(args.out, args.schedule, name.replace(' ', '-'))
        found = quantize(model, config_of(model, setting), options, seed, path)
        return found['top1']

    heads = [f'{model} {setting.upper()}' for model, setting in cells]
    heads += [f'{model}, mean difference' for model in args.models]
    print(f'| Variant | {" | ".join(heads)} |')
    print(f'| :-- |{" --: |" * len(heads)}')
    means = {}
    for name in [AS_IT_IS, *(v for v in args.variants if v != AS_IT_IS)]:
        row = [name]
        for cell in cells:
            values = [top1(name, *cell, seed) for seed in args.seeds]
            means[name, cell] = statistics.mean(values)
            row.append(mean_and_spread(values))
        for model in args.models:
            difference = statistics.mean(
                means[name, cell] - means[AS_IT_IS, cell]
                for cell in cells
                if cell[0] == model
            )
            row.append(f'{difference:+.2f}')
        print(f'| {" | ".join(row)} |', flush=True)


if __name__ == '__main__':
    main()
