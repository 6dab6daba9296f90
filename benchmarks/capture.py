"""Does the capture of activations grow with depth, or with its square?

    python benchmarks/capture.py

Rounds residual networks of more and more units to the nearest, so that next
to nothing but the capture is left, and counts how often an image passes what
lies between the units, in the teacher and in the student. The last column
captures by a pass from the beginning for every unit, as other tools do.
"""

from __future__ import annotations

import argparse
import time

import torch
from mmengine.device import get_device
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from mmrazor_brecq.algorithms import BRECQ


class Block(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Add what two layers make of it."""
        return x + 0.1 * self.second(self.first(x).relu())


def network(units: int, channels: int = 16) -> nn.Module:
    """A stem, blocks and a classifier: ``units`` in all, glue between."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(3, channels, 3, 2, 1), nn.ReLU()]
    for _ in range(units - 2):
        layers += [Block(channels), nn.ReLU()]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(channels, 10)).eval()


def count(network: nn.Module) -> list[int]:
    """A list to which every image adds 1 at all the glue it passes."""
    seen = [0]

    def hook(m: nn.Module, args: tuple) -> None:
        seen[0] += len(args[0])

    for module in network:  # type: ignore[attr-defined]
        if isinstance(module, nn.ReLU):
            module.register_forward_pre_hook(hook)
    return seen


def again_and_again(teacher: nn.Module, names: list[str], images: Tensor):
    """Seconds of capturing each unit's input by a pass of its own."""

    class Stop(Exception):
        pass

    def stop(m: nn.Module, args: tuple) -> None:
        raise Stop

    start = time.perf_counter()
    with torch.no_grad():
        for name in names:
            hook = teacher.get_submodule(name).register_forward_pre_hook(stop)
            for batch in images.split(32):
                try:
                    teacher(batch)
                except Stop:
                    pass
            hook.remove()
    return time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--units', nargs='+', type=int, default=[10, 20, 50, 100]
    )
    parser.add_argument('--images', type=int, default=128)
    args = parser.parse_args()
    torch.set_num_threads(1)
    device = get_device()
    table = Table(
        'Units',
        'Seconds',
        'Seconds a unit',
        'Teacher passes an image',
        'Student passes an image',
        'Again for each unit: seconds',
        title=f'{args.images} images of 32 x 32 pixels, {device}, one thread',
    )
    for units in args.units:
        images = torch.randn(args.images, 3, 32, 32, device=device)
        batches = images.split(32)
        model = BRECQ(
            network(units),
            reconstructor=dict(type='NearestRounding', fit_images=32),
        )
        model = model.to(device).eval()
        teacher = model.prepare(batches[0][:1])
        names = [unit.name for unit in model.units]
        assert len(names) == units
        passes = count(teacher), count(model.architecture)
        start = time.perf_counter()
        reports = list(model.reconstruct(teacher, batches))
        seconds = time.perf_counter() - start
        assert len(reports) == units
        teacher_passes, student_passes = (
            seen[0] / (units - 1) / args.images for seen in passes
        )
        slow = again_and_again(teacher, names, images)
        table.add_row(
            str(units),
            f'{seconds:.2f}',
            f'{seconds / units:.3f}',
            f'{teacher_passes:.2f}',
            f'{student_passes:.2f}',
            f'{slow:.2f}',
        )
    Console(width=100).print(table)


if __name__ == '__main__':
    main()
