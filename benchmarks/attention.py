"""How near to float are trained transformers, products of attention included?

    python benchmarks/attention.py --networks deit=FILE.pth --methods fold fast

Fashion-MNIST, with the float networks of configs/float and their weights.
One row for each network, bit widths and method: accuracy on the test set, the
divergence from the float network on it, and CPU seconds. What is measured
already, in --out, is not measured again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os.path as osp
import time
from typing import Any

import torch
from accuracy import ROOT
from imagenet import compare
from quantize import add_row_options, answers, prepared

from mmrazor_brecq.checkpoint import save_json
from mmrazor_brecq.config.load import load_config
from mmrazor_brecq.config.recipe import Recipe

BITS = ['w8a8', 'w6a6', 'w4a8', 'w4a4', 'w3a3']
NEAREST: dict[str, Any] = dict(type='NearestRounding', _delete_=True)
DEMO = f'{ROOT}/demo/fashion_mnist'
#: Schedule and changes to the config of each method.
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    'nearest': (
        'fast',
        {'model.reconstructor': NEAREST, 'model.equalize_norms': False},
    ),
    'fold': ('fast', {'model.reconstructor': NEAREST}),
    'linear': (
        'fast',
        {'model.quantization.bit_overrides': {'*product_*': None}},
    ),
    'fast': ('fast', {}),
    'default': ('default', {}),
}


def measure(
    args: argparse.Namespace, name: str, bits: str, method: str, work: str
) -> dict[str, float]:
    """Quantize and compare with the float network, on the test images."""
    schedule, options = METHODS[method]
    weight, activation = map(int, bits[1:].split('a'))
    calibration = 'test_cfg.calibration.dataloader.dataset'
    options = {
        f'{calibration}.data_root': DEMO,
        f'{calibration}.images': 'calib-images-idx3-ubyte.gz',
        f'{calibration}.labels': 'calib-labels-idx1-ubyte.gz',
        'test_dataloader.dataset.data_root': DEMO,
        'model.quantization.weight.bits': weight,
        'model.quantization.activation.bits': activation,
        'randomness.seed': args.seed,
        'log_level': 'WARNING',
        **options,
        **args.cfg_options,
    }
    recipe = Recipe('w8a8', schedule, num_images=args.num_images)
    config = args.config.format(name)
    cfg = load_config(config, options, work, recipe=recipe)
    runner, brecq, images = prepared(cfg, dict(args.networks)[name])
    teacher = brecq.prepare(images.batch(0)[:1])
    path = osp.join(args.out, f'{name}_float.pth')
    if not osp.exists(path):
        torch.save(answers(runner, teacher), path)
    goal, labels = torch.load(path, weights_only=True)
    start, cpu = time.perf_counter(), time.process_time()
    rotated = brecq.rotate_channels(teacher, images)
    equalized = brecq.equalize(teacher, images)
    brecq.widen(images)
    reports = [*brecq.reconstruct(teacher, images, args.seed)]
    seconds = time.perf_counter() - start
    cpu = time.process_time() - cpu
    logits, _ = answers(runner, brecq.architecture)
    return dict(
        compare(logits, goal, labels),
        float_top1=compare(goal, goal, labels)['top1'],
        seconds=seconds,
        cpu_seconds=cpu,
        rotated=len(rotated),
        equalized=len(equalized),
        units=len(reports),
        learned=sum(report.accepted for report in reports),
    )


def row(args: argparse.Namespace, name: str, bits: str, method: str) -> str:
    """Measure unless it is known, and return a line of a table."""
    work = osp.join(args.out, f'{name}_{bits}_{method}_seed{args.seed}')
    path = osp.join(work, 'run.json')
    if not osp.exists(path):
        save_json(measure(args, name, bits, method, work), path)
    with open(path) as file:
        run = json.load(file)
    return (
        f'| {name}, {bits.upper()} | {method} | {run["float_top1"]:.2f} '
        f'| {run["top1"]:.2f} | {run["kl"]:.4f} ± {run["kl_error"]:.4f} '
        f'| {run["cpu_seconds"]:.0f} |'
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--networks',
        nargs='+',
        required=True,
        type=lambda text: text.split('=', 1),
        help='name in configs/float, and float weights: deit=FILE.pth',
    )
    parser.add_argument('--bits', nargs='+', default=BITS)
    parser.add_argument('--methods', nargs='+', default=['linear', 'fast'])
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--num-images', type=int, default=512)
    parser.add_argument(
        '--config', default=f'{ROOT}/configs/float/{{}}_fashion-mnist.py'
    )
    add_row_options(parser, 'work_dirs/attention')
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(
        '| network | method | float | top-1 | divergence, nats | CPU s |\n'
        '| :-- | :-- | --: | --: | --: | --: |'
    )
    names = [name for name, _ in args.networks]
    for case in itertools.product(names, args.bits, args.methods):
        print(row(args, *case), flush=True)


if __name__ == '__main__':
    main()
