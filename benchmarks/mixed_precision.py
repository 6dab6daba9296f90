"""Is a mixed model better than a uniform one of its size?

    python benchmarks/mixed_precision.py --seeds 0 1 2

For both demo models and each setting (weights alone, and with activations)
it searches widths at the size of uniform models, quantizes those and the
uniform ones with every seed, and prints their top-1 accuracies; and the
rank correlation between predicted loss and measured loss of accuracy over
random assignments. What is measured already, in --out, is not measured
again. The schedule is that of --iterations, for all of it alike.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os.path as osp
import random
import statistics

import torch
from accuracy import FOLDERS, mean_and_spread
from mmengine.config import Config
from quantize import (
    checkpoint_of,
    config_of,
    prepared,
    quantize,
    top1,
)
from scipy.stats import spearmanr

from mmrazor_brecq.checkpoint import save_json
from mmrazor_brecq.config.load import load_config
from mmrazor_brecq.engine.search_run import search_bits
from mmrazor_brecq.engine.sensitivity_run import (
    MixedPrecision,
    SensitivityFile,
    find_space,
    sensitivities,
    uniform_models,
)
from mmrazor_brecq.mixed_precision.sensitivity import quantized_choices

#: By setting: the config's bits, and what is searched.
SETTINGS = {
    'a32': ('w4a32', ['weight']),
    'a4': ('w4a4', ['weight', 'activation']),
}
BIT_WIDTHS = [2, 3, 4, 6, 8]
EQUAL = {'a32': ['w3', 'w4'], 'a4': ['w3a4', 'w4a4']}


class Bench:
    """One demo model in one setting.

    Args:
        model (str): Its name.
        setting (str): One of ``SETTINGS``.
        iterations (int): Of the reconstruction, for each layer.
        blocks (bool): Whether sensitivity is measured on blocks that were
            reconstructed as a whole.
        out (str): Folder of what is measured.
    """

    def __init__(
        self,
        model: str,
        setting: str,
        iterations: int,
        blocks: bool,
        out: str,
    ) -> None:
        self.model, self.setting = model, setting
        bits, self.kinds = SETTINGS[setting]
        self.config = config_of(model, bits)
        self.folder = osp.join(out, f'{model}_{setting}')
        self.options = {
            'mixed_precision.bits': BIT_WIDTHS,
            'mixed_precision.kinds': self.kinds,
            'model.reconstructor.iterations': iterations,
        }
        if blocks:
            self.options['mixed_precision.partition'] = None

    def load(self) -> Config:
        """The config that the search starts from."""
        return load_config(self.config, self.options, self.folder)

    def accuracy(self, name: str, config: str, seed: int, **options) -> dict:
        """Top-1 accuracy and bytes of one quantized model."""
        path = osp.join(self.folder, f'{name}_seed{seed}.json')
        options = {**self.options, **options}
        return quantize(self.model, config, options, seed, path)

    def search(self) -> dict[str, str]:
        """The configs of mixed models, by the uniform one's name."""
        found = {
            name: osp.join(self.folder, f'bits_equal_to_{name}.py')
            for name in EQUAL[self.setting]
        }
        if not all(map(osp.exists, found.values())):
            search_bits(
                self.load(),
                self.config,
                checkpoint_of(self.model),
                equal_to=list(found),
                changed=True,
            )
        return found

    def correlation(self, count: int = 20) -> dict:
        """Predicted and measured loss of random assignments.

        Their layers are those of the uniform models.
        """
        path = osp.join(self.folder, 'correlation.json')
        if not osp.exists(path):
            cfg = self.load()
            settings = MixedPrecision.of(cfg)
            runner, model, images = prepared(cfg, checkpoint_of(self.model))
            seed = runner.seed
            file = SensitivityFile(
                osp.join(self.folder, 'sensitivity.json'),
                settings.identity(model, cfg, images, seed),
            )
            models, teacher = uniform_models(
                model, settings, images, file, seed, runner.logger
            )
            found = find_space(model, settings, images.batch(0)[:1])
            sensitivities(
                model, settings, images, found, file, seed, runner.logger
            )
            choices = found.choices
            parts = dict(teacher.named_modules())
            base = top1(runner, teacher)
            rng = random.Random(0)
            rows = []
            for _ in range(count):
                bits = {choice: rng.choice(BIT_WIDTHS) for choice in choices}
                names = {choice.name: width for choice, width in bits.items()}
                with quantized_choices(parts, models, bits):
                    reached = top1(runner, teacher)
                rows.append(
                    dict(
                        loss=base - reached,
                        predicted=file.loss.bounded()(names),
                        diagonal=file.loss.diagonal()(names),
                    )
                )
                runner.logger.info(rows[-1])
            save_json(dict(rows=rows), path)
        with open(path) as file:
            rows = json.load(file)['rows']
        losses = [row['loss'] for row in rows]
        return {
            key: float(spearmanr([row[key] for row in rows], losses)[0])
            for key in ('predicted', 'diagonal')
        }


def line(bench: Bench, name: str, config: str, seeds: list[int]) -> str:
    """A row: the uniform model, the mixed one, and their difference."""
    weight = int(name[1])
    plain = [
        bench.accuracy(
            f'uniform_{name}',
            bench.config,
            seed,
            **{'model.quantization.weight.bits': weight},
        )
        for seed in seeds
    ]
    mixed = [bench.accuracy(f'mixed_{name}', config, seed) for seed in seeds]

    def top1(runs: list[dict]) -> str:
        return mean_and_spread([run['top1'] for run in runs])

    gain = statistics.mean(m['top1'] - p['top1'] for m, p in zip(mixed, plain))
    return (
        f'| {bench.model} | {name} | {plain[0]["weight_bytes"]:,} '
        f'| {mixed[0]["weight_bytes"]:,} | {top1(plain)} | {top1(mixed)} '
        f'| {gain:+.2f} |'
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--models', nargs='+', default=list(FOLDERS))
    parser.add_argument('--settings', nargs='+', default=list(SETTINGS))
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    parser.add_argument('--iterations', type=int, default=80)
    parser.add_argument(
        '--blocks',
        action='store_true',
        help='reconstruct whole blocks to measure sensitivity, as the paper; '
        'give it an --out of its own',
    )
    parser.add_argument('--out', default='work_dirs/mixed_precision')
    args = parser.parse_args()
    torch.set_num_threads(1)
    benches = [
        Bench(*pair, args.iterations, args.blocks, osp.abspath(args.out))
        for pair in itertools.product(args.models, args.settings)
    ]
    for bench in benches:
        found = bench.correlation()
        print(
            f'{bench.model} {bench.setting}: rank correlation with pairs '
            f'{found["predicted"]:.2f}, without {found["diagonal"]:.2f}',
            flush=True,
        )
    print(
        '| Model | Equal to | Bytes, uniform | Bytes, mixed | Top-1, uniform '
        '| Top-1, mixed | Gain |\n| :-- | :-- | --: | --: | --: | --: | --: |'
    )
    for bench in benches:
        for name, config in bench.search().items():
            print(line(bench, name, config, args.seeds), flush=True)


if __name__ == '__main__':
    main()
