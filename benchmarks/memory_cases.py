"""Networks and images of which a run has to stay within its memory.

Each case runs in a process of its own, and its growth is compared with what
is promised: the budget (without one, what was held), the model, and 500 MB. Of
`linear`, whose 100 million weights all learn, nothing but an end is promised.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Callable, Optional, Union

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import mmrazor_brecq
from mmrazor_brecq import api
from mmrazor_brecq.activations import Store
from mmrazor_brecq.engine.memory import DEFAULT_MEMORY
from mmrazor_brecq.engine.usage import peak_memory_mb

MB = 2**20


def full_size() -> nn.Module:
    """A network that never lowers the resolution: 64 MB at 1024 pixels."""
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)),
    )


def torchvision_model(name: str) -> Callable[[], nn.Module]:
    """Builds a network of torchvision, of random weights."""

    def build() -> nn.Module:
        import torchvision

        return torchvision.models.get_model(name)

    return build


def efficientnet_lite0() -> nn.Module:
    """Build what `pip install efficientnet_lite_pytorch` brings."""
    from efficientnet_lite_pytorch import EfficientNet

    return EfficientNet.from_name('efficientnet-lite0')


class Deep(nn.Module):
    """Many layers, each beside a shortcut."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(layers))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run."""
        for layer in self.layers:
            x = x + 0.05 * layer(x).relu()
        return x


@dataclass(frozen=True)
class Case:
    """What is quantized, and within which budget.

    Attributes:
        network (callable): Builds it.
        shape (tuple[int]): Of all images.
        memory (str | float, optional): As for ``mmrazor_brecq.quantize``.
    """

    network: Callable[[], nn.Module]
    shape: tuple[int, ...]
    memory: Union[str, float, None]


CASES = dict(
    large=Case(torchvision_model('resnet18'), (8, 3, 1024, 1024), '512MiB'),
    full=Case(full_size, (8, 3, 1024, 1024), '512MiB'),
    small=Case(full_size, (100_000, 3, 8, 8), '64MiB'),
    unlimited=Case(full_size, (32, 3, 1024, 1024), None),
    default=Case(
        torchvision_model('efficientnet_b0'),
        (1000, 3, 224, 224),
        DEFAULT_MEMORY,
    ),
    lite0=Case(efficientnet_lite0, (1000, 3, 224, 224), DEFAULT_MEMORY),
    linear=Case(
        lambda: nn.Sequential(nn.Linear(10_000, 10_000)),
        (64, 10_000),
        '1GiB',
    ),
    deep=Case(lambda: Deep(2000), (64, 8), '1GiB'),
)


def measure(name: str, images: Optional[int], iterations: int) -> dict:
    """Quantize, and tell how much the process grew, in MiB."""
    case = CASES[name]
    stores: list[Store] = []
    make = api.activation_store

    def remember(*args: object) -> Store:
        stores.append(make(*args))  # type: ignore[arg-type]
        return stores[-1]

    api.activation_store = remember  # type: ignore[assignment]
    torch.manual_seed(0)
    network = case.network().eval()
    shape = (images or case.shape[0], *case.shape[1:])
    inputs = torch.randn(shape)
    before, start = peak_memory_mb(), time.perf_counter()
    mmrazor_brecq.quantize(
        network,
        inputs,
        memory=case.memory,
        reconstructor=dict(
            type='BlockReconstructor',
            iterations=iterations,
            # More would only take the same images again.
            batch_size=min(64, len(inputs)),
            objective=dict(type='FisherLowRank'),
        ),
    )
    (store,) = stores
    model = sum(p.numel() * 4 for p in network.parameters())
    budget = store.peak_bytes if store.budget is None else store.budget
    return dict(
        grew=peak_memory_mb() - before,
        promised=(budget + model + 500e6) / MB,
        held=store.peak_bytes / MB,
        files=store.spilled_bytes / MB,
        seconds=time.perf_counter() - start,
    )


def main() -> None:
    """Measure each case in a fresh process, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('cases', nargs='*', choices=[[], *CASES])
    parser.add_argument('--images', type=int, help='fewer or more of them')
    parser.add_argument('--iterations', type=int, default=2)
    parser.add_argument('--alone', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.alone:
        found = measure(args.alone, args.images, args.iterations)
        print(json.dumps(found))
        return
    columns = 'grew', 'promised', 'held', 'files', 'seconds'
    table = Table('', *columns, title='MiB, but for the seconds')
    for name in args.cases or CASES:
        command = [sys.executable, __file__, '--alone', name]
        command += ['--iterations', str(args.iterations)]
        if args.images:
            command += ['--images', str(args.images)]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        table.add_row(name, *(f'{found[key]:,.0f}' for key in columns))
    Console().print(table)


if __name__ == '__main__':
    main()
