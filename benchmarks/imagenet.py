"""How near to float are networks with real weights on real images?

    python benchmarks/imagenet.py FOLDER --networks efficientnet-lite0=FILE.pth

FOLDER has the images to calibrate on in `calibration/`, listed in
`calibration.txt`, and those to measure on in `val/`, listed in `val.txt` with
their labels. FILE.pth are the float weights of the network that a config of
configs/torch_model makes, or one whose path is given in place of its name.

One row for each network, bit widths and schedule: accuracy, how often the
class is that of the float network, the divergence from it, and the
difference to its accuracy with a standard error from the same images, for
few images tell little else. Each row is a process of its own, whose CPU
seconds and largest resident size are those of the quantization alone. What
is measured already, in --out, is not measured again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import os.path as osp
import subprocess
import sys
import time
from typing import Any

import torch
from accuracy import ROOT
from mmengine.config import Config
from quantize import add_row_options, answers, prepared
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from mmrazor_brecq.checkpoint import save_json
from mmrazor_brecq.config.recipe import Recipe
from mmrazor_brecq.engine.launch import load_config
from mmrazor_brecq.engine.usage import peak_memory_mb

#: Where quantizers stand, without which no two tables compare: by
#: `quantize_shortcuts`.
PLACEMENT = {
    True: 'A unit quantizes its input once, the shortcut with it; first and '
    'last layer have 8 bits',
    False: 'Each layer quantizes its input, shortcuts stay float; first and '
    'last layer have 8 bits',
}
SHORTCUTS = 'model.quantization.quantize_shortcuts'
FLOAT = 'float'


def compare(logits: Tensor, goal: Tensor, labels: Tensor) -> dict[str, float]:
    """Compare a network with the float one on the same images.

    Args:
        logits (Tensor): N x C of the network.
        goal (Tensor): Likewise of the float network.
        labels (Tensor): N classes.

    Returns:
        dict: ``top1``, ``top5`` and ``agreement`` in per cent; ``kl``, the
        mean Kullback-Leibler divergence in nats; ``difference`` of top-1 to
        float, in points; with ``_error`` the standard errors of both.
    """
    best = logits.topk(min(5, logits.shape[1])).indices
    right, before = best[:, 0] == labels, goal.argmax(1) == labels
    change = 100 * (right.double() - before.double())
    divergence = F.kl_div(
        logits.double().log_softmax(1),
        goal.double().log_softmax(1),
        reduction='none',
        log_target=True,
    ).sum(1)
    shares = dict(
        top1=right,
        top5=(best == labels[:, None]).any(1),
        agreement=best[:, 0] == goal.argmax(1),
    )
    means = dict(kl=divergence, difference=change)
    root = len(labels) ** 0.5
    return {
        **{k: 100 * float(v.double().mean()) for k, v in shares.items()},
        **{k: float(v.mean()) for k, v in means.items()},
        **{f'{k}_error': float(v.std()) / root for k, v in means.items()},
    }


def config_of(name: str) -> str:
    """Return the config of a network: one of ours, or a path."""
    if osp.exists(name):
        return name
    return f'{ROOT}/configs/torch_model/{name}_in1k.py'


def configure(
    args: argparse.Namespace, name: str, bits: str, schedule: str, work: str
) -> Config:
    """Return the config of one row."""
    folder = osp.abspath(args.folder)
    path = config_of(name)
    dataset = Config.fromfile(path).test_dataloader.dataset
    where = 'test_dataloader.dataset'
    options: dict[str, Any] = {
        f'{where}.data_root': folder,
        f'{where}.ann_file': 'val.txt',
        f'{where}.data_prefix': 'val',
        'test_cfg.calibration.dataloader.num_workers': 0,
        'test_cfg.calibration.dataloader.persistent_workers': False,
        'test_dataloader.num_workers': 0,
        'test_dataloader.persistent_workers': False,
        'randomness.seed': args.seed,
        'log_level': 'WARNING',
    }
    if args.margin is not None:
        for i, step in enumerate(dataset.pipeline):
            if step['type'].endswith('ResizeEdge'):
                crop = dataset.pipeline[i + 1]['crop_size']
                options[f'{where}.pipeline.{i}.scale'] = crop + args.margin
    recipe = Recipe(
        'w8a8' if bits == FLOAT else bits,
        'default' if bits == FLOAT else schedule,
        osp.join(folder, 'calibration.txt'),
        args.num_images,
    )
    return load_config(
        path, {**options, **args.cfg_options}, work, recipe=recipe
    )


def measure(
    args: argparse.Namespace, name: str, bits: str, schedule: str, work: str
) -> None:
    """Quantize, and write what came of it; for `float` the answers alone."""
    torch.set_num_threads(args.threads)
    cfg = configure(args, name, bits, schedule, work)
    checkpoint = dict(args.networks)[name]
    runner, brecq, images = prepared(cfg, checkpoint)
    start, clock = time.process_time(), time.perf_counter()
    accepted: list[bool] = []
    if bits != FLOAT:
        teacher = brecq.prepare(images.batch(0)[:1])
        reports = brecq.reconstruct(teacher, images, args.seed)
        accepted = [report.accepted for report in reports]
    found = dict(
        cpu_seconds=time.process_time() - start,
        seconds=time.perf_counter() - clock,
        peak_memory_mb=peak_memory_mb(),
        units=len(accepted),
        units_learned=sum(accepted),
        images=len(images),
    )
    logits, labels = answers(runner, brecq.architecture)
    torch.save((logits, labels), osp.join(work, 'answers.pth'))
    save_json(found, osp.join(work, 'run.json'))


def row(
    args: argparse.Namespace, name: str, bits: str, schedule: str
) -> dict[str, Any]:
    """Measure in a process of its own, unless it is known; compare."""
    stem = osp.splitext(osp.basename(name))[0]
    works = [
        osp.join(args.out, f'{stem}_{key}_seed{args.seed}')
        for key in (FLOAT, f'{bits}_{osp.basename(schedule)}')
    ]
    for work, kind in zip(works, (FLOAT, bits)):
        if not osp.exists(osp.join(work, 'run.json')):
            os.makedirs(work, exist_ok=True)
            subprocess.run(
                [*(sys.executable, *sys.argv)]
                + ['--alone', name, kind, schedule, work],
                check=True,
                stdout=subprocess.DEVNULL,
            )
    (goal, labels), (logits, _) = (
        torch.load(osp.join(work, 'answers.pth'), weights_only=True)
        for work in works
    )
    with open(osp.join(work, 'run.json')) as file:
        run = json.load(file)
    float_top1 = compare(goal, goal, labels)['top1']
    return dict(
        network=stem,
        bits=bits,
        schedule=schedule,
        float=float_top1,
        **compare(logits, goal, labels),
        **run,
        seed=args.seed,
        test_images=len(labels),
        placement=PLACEMENT[args.cfg_options.get(SHORTCUTS, True)],
    )


def network(text: str) -> tuple[str, str]:
    """Take name and checkpoint of a network apart."""
    name, _, checkpoint = text.partition('=')
    if not osp.isfile(checkpoint):
        raise argparse.ArgumentTypeError(
            f'{text!r}, expected NAME=CHECKPOINT with a file of float weights'
        )
    return name, osp.abspath(checkpoint)


def table_of(rows: list[dict[str, Any]]) -> Table:
    """Return the rows as a table."""
    table = Table(
        *('Network', 'Bits', 'Schedule', 'Float', 'Top-1', 'Top-5'),
        *('To float', 'Agreement', 'KL', 'CPU s', 'Peak MB'),
        caption=rows[0]['placement'],
    )
    for found in rows:
        table.add_row(
            *(found['network'], found['bits'].upper(), found['schedule']),
            *(f'{found[key]:.2f}' for key in ('float', 'top1', 'top5')),
            f'{found["difference"]:+.2f} ± {found["difference_error"]:.2f}',
            f'{found["agreement"]:.1f} %',
            f'{found["kl"]:.4f} ± {found["kl_error"]:.4f}',
            f'{found["cpu_seconds"]:,.0f}',
            f'{found["peak_memory_mb"]:,.0f}',
        )
    return table


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('folder')
    parser.add_argument('--networks', nargs='+', type=network, required=True)
    parser.add_argument(
        '--bits', nargs='+', default=['w8a8', 'w4a8', 'w4a4', 'w3a8', 'w2a8']
    )
    parser.add_argument(
        '--schedules', nargs='+', default=['fast', 'default', 'best']
    )
    parser.add_argument('--num-images', type=int, default=1024)
    parser.add_argument(
        '--margin',
        type=int,
        help='pixels that test images keep beyond those that are cut out, '
        'where they are smaller than usual: 3 for 227 x 227 and 224',
    )
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--threads', type=int, default=1)
    add_row_options(parser, 'work_dirs/imagenet')
    parser.add_argument('--alone', nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.alone:
        measure(args, *args.alone)
        return
    rows = []
    for (name, _), bits, schedule in itertools.product(
        args.networks, args.bits, args.schedules
    ):
        rows.append(row(args, name, bits, schedule))
        save_json(dict(rows=rows), osp.join(args.out, 'imagenet.json'))
    Console(width=140).print(table_of(rows))


if __name__ == '__main__':
    main()
