"""Does a run stay within its memory, and how long does a large one take?

    python benchmarks/memory.py --images 4096 --memory 1GiB
    python benchmarks/memory.py --images 1024 --threads 2

Reconstructs a ResNet-18 of random weights on random images of 224 pixels with
the schedule `fast` or another, and prints the largest resident size of the
process beside what it may be: the budget, the model (float, in bytes), and
500 MB.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator

import torch
from accuracy import schedule_of
from mmengine.device import get_device
from mmengine.registry import MODELS, init_default_scope
from rich.console import Console
from rich.table import Table
from torch import Tensor

from mmrazor_brecq.activations import (
    MAX_ELEMENTS_FORWARD,
    CachedBatches,
    images_per_pass,
)
from mmrazor_brecq.algorithms import BRECQ
from mmrazor_brecq.engine.memory import activation_store
from mmrazor_brecq.engine.usage import peak_memory_mb

MB = 2**20


def images(sizes: list[int], device: str) -> Iterator[Tensor]:
    """Batches of noise, made as they are asked for."""
    generator = torch.Generator().manual_seed(0)
    for size in sizes:
        yield torch.randn(size, 3, 224, 224, generator=generator).to(device)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--images', type=int, default=1024)
    parser.add_argument('--memory', default='1GiB')
    parser.add_argument('--schedule', default='fast')
    parser.add_argument('--iterations', type=int, help='of each layer')
    parser.add_argument('--threads', type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    init_default_scope('mmcls')
    device = get_device()
    network = MODELS.build(
        dict(
            type='ImageClassifier',
            backbone=dict(type='ResNet', depth=18),
            neck=dict(type='GlobalAveragePooling'),
            head=dict(type='LinearClsHead', num_classes=1000, in_channels=512),
        )
    )
    schedule = schedule_of(args.schedule)
    if args.iterations is not None:
        schedule.iterations = args.iterations
    model = BRECQ(
        network,
        quantization=dict(weight=dict(bits=4), activation=dict(bits=4)),
        reconstructor=schedule,
    )
    model = model.to(device).eval()
    weights = sum(p.numel() * 4 for p in model.parameters()) / MB
    before = peak_memory_mb()
    size = images_per_pass(
        3 * 224 * 224, max_images=32, max_elements=MAX_ELEMENTS_FORWARD
    )
    sizes = [len(x) for x in torch.arange(args.images).split(size)]
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(dir='.') as folder:
        store = activation_store(args.memory, torch.device(device), folder)
        rows = CachedBatches(images(sizes, device), sizes, store)
        teacher = model.prepare(rows.batch(0)[:1])
        for report in model.reconstruct(teacher, rows):
            seconds = time.perf_counter() - start
            print(
                f'{seconds:7.1f} s  {peak_memory_mb():7.0f} MB  {report.name}',
                flush=True,
            )
    table = Table('', 'MB', title=f'{args.images} images, {device}')
    budget_mb = (store.budget or 0) / MB
    for name, value in {
        'budget': budget_mb,
        'the process with the model, before the run': before,
        'of which weights': weights,
        'allowed: budget + that + 500': budget_mb + before + 500e6 / MB,
        'peak resident size': peak_memory_mb(),
        'activations held, at most': store.peak_bytes / MB,
        'activations written to files, in all': store.spilled_bytes / MB,
    }.items():
        table.add_row(name, f'{value:,.0f}')
    Console().print(table)
    print(
        f'{time.perf_counter() - start:.0f} s, {args.threads} thread(s), '
        f'{args.schedule}, {schedule.iterations} iterations a layer'
    )


if __name__ == '__main__':
    main()
