"""What share of an iteration do the convolutions themselves take?

    python benchmarks/inner_loop.py [--autocast bfloat16] [--schedule fast]

For every unit of the demo's ResNet-18 at W2A2: the time of one iteration of
its reconstruction by the schedule, and that of the same convolutions alone,
forward and backward, to the same inputs and weights, with as many images.
Medians, one thread.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any, Callable

import torch
from accuracy import schedule_of
from mmengine.config import Config
from mmengine.registry import init_default_scope
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from mmrazor_brecq.layers import quant_layers
from mmrazor_brecq.reconstruction import BlockReconstructor, UnitData
from mmrazor_brecq.registry import MODELS

ROOT = 'configs/brecq'
CONFIGS = {
    'resnet18': f'{ROOT}/resnet/brecq_resnet18_w2a2_fashion-mnist.py',
    'mobilenet-v2': (
        f'{ROOT}/mobilenet_v2/brecq_mobilenet-v2_w4a4_fashion-mnist.py'
    ),
}


def median(step: Callable[[], Any], repeats: int = 30) -> float:
    """Milliseconds of a step."""
    times = []
    for _ in range(repeats + 3):
        start = time.perf_counter()
        step()
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times[3:])


class Watched(BlockReconstructor):
    """Times its iterations, and the unit's convolutions beside them."""

    def __init__(self, table: Table, **kwargs: Any) -> None:
        super().__init__(negligible=0.0, **kwargs)
        self.table = table
        self.totals = [0.0, 0.0]

    def learn(self, unit: Any, data: UnitData, generator: Any, report: Any):
        """Learn, and note the time of every tenth iteration."""
        with self.autocast(torch.device('cpu')):
            bare = bare_convolutions(unit.module, data, self.batch_size)
        self.times: list[float] = []
        super().learn(unit, data, generator, report)
        tens = self.times[::10]
        tens = [(b - a) / 10 for a, b in zip(tens, tens[1:])]
        whole = statistics.median(tens) * 1e3
        self.totals[0] += whole
        self.totals[1] += bare
        self.table.add_row(
            unit.name, f'{whole:.2f}', f'{bare:.2f}', f'{bare / whole:.0%}'
        )

    def _penalty(self, *args: Any) -> Any:
        self.times.append(time.perf_counter())
        return super()._penalty(*args)


def bare_convolutions(
    module: nn.Module, data: UnitData, batch_size: int
) -> float:
    """Milliseconds of the unit's layers alone, forward and backward."""
    calls: list[Callable[[], Tensor]] = []
    operands: list[tuple[Tensor, Tensor]] = []

    def see(layer: Any, args: tuple) -> None:
        x = args[0].detach().clone().requires_grad_()
        weight = layer.stored_weight.detach().clone().requires_grad_()
        operands.append((x, weight))
        if isinstance(layer, nn.Linear):
            calls.append(lambda: F.linear(x, weight, layer.bias))
        else:
            calls.append(
                lambda: F.conv2d(
                    x,
                    weight,
                    layer.bias,
                    layer.stride,
                    layer.padding,
                    layer.dilation,
                    layer.groups,
                )
            )

    hooks = [
        layer.register_forward_pre_hook(see)
        for layer in quant_layers(module).values()
    ]
    args, kwargs = data.inputs.take(torch.arange(batch_size))
    with torch.no_grad():
        module(*args, **kwargs)
    for hook in hooks:
        hook.remove()
    grads = [torch.randn_like(call()) for call in calls]

    def step() -> None:
        for call, pair, grad in zip(calls, operands, grads):
            torch.autograd.grad(call(), pair, grad)

    return median(step)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--model', default='resnet18', choices=CONFIGS)
    parser.add_argument('--checkpoint')
    parser.add_argument('--iterations', type=int, default=41)
    parser.add_argument('--schedule', default='default')
    parser.add_argument('--autocast', help='type of numbers, such as bfloat16')
    args = parser.parse_args()
    torch.set_num_threads(1)
    cfg = Config.fromfile(CONFIGS[args.model])
    init_default_scope('mmcls')
    model = MODELS.build(cfg.model)
    path = args.checkpoint or f'demo/{args.model}_fashion-mnist.pth'
    model.load_state_dict(torch.load(path, weights_only=True))
    model.eval()
    images = torch.randn(256, 3, 64, 64)
    teacher = model.prepare(images[:1])
    schedule = schedule_of(args.schedule)
    table = Table(
        'Unit',
        'Iteration (ms)',
        'Convolutions alone (ms)',
        'Share',
        title=f'{args.model}, batches of {schedule.batch_size}, '
        f'{args.autocast or "float32"}, one thread, torch '
        f'{torch.__version__}',
    )
    watched = Watched(
        table,
        iterations=args.iterations,
        autocast=args.autocast,
        batch_size=schedule.batch_size,
        objective=schedule.objective,
    )
    for _ in model.reconstruct(teacher, images.split(64), 0, watched):
        pass
    whole, bare = watched.totals
    table.add_row('all', f'{whole:.2f}', f'{bare:.2f}', f'{bare / whole:.0%}')
    Console().print(table)


if __name__ == '__main__':
    main()
