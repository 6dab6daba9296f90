"""Say what a run will do and take, without doing it."""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from mmengine.config import Config
from mmengine.runner import Runner
from torch import Tensor, nn

from ..activations import CachedBatches
from ..algorithms import BRECQ
from ..checkpoint import load_float
from ..functional import in_grad_mode, tensors
from ..graph import run_float
from ..reconstruction import Reconstructor, UnitReport
from .launch import bare_model, build_runner, calibration_images
from .runners import RunOwner
from .usage import peak_memory_mb

#: Images that are loaded to measure on.
PROBED_IMAGES = 128
#: Units that learn a little, and for how many iterations for each layer.
PROBED_UNITS, FEW, MORE = 2, 1, 4
#: Time of a quantized pass in that of a float one.
QUANTIZED = 1.1
#: Images whose gradients an objective looks at.
WATCHED = 256
#: Bytes of a cached element.
BYTES = 4


@dataclass
class UnitCost:
    """What a unit takes, from a pass of the float network.

    Attributes:
        seconds (float): Of the forward pass of an image.
        elements (int): Of the inputs and outputs of an image.
    """

    seconds: float = 0.0
    elements: int = 0


@in_grad_mode
def dry_run(
    cfg: Config, checkpoint: str, trust: bool = False
) -> dict[str, Any]:
    """Return the plan of a run, which is not begun and leaves no file.

    Args:
        cfg (Config): From :func:`load_config`; it stays as it is.
        checkpoint (str): The float checkpoint.
        trust (bool): Whether loading the checkpoint may run code.

    Returns:
        dict: ``units`` with ``name``, ``layers`` and ``bits``; the
        ``account``; ``seconds`` by part, and ``memory_mb``, both estimated
        from two units that learn for a few iterations.
    """
    cfg = copy.deepcopy(cfg)
    with tempfile.TemporaryDirectory() as folder:
        cfg.work_dir = folder
        # What happens here is no run that anybody wants to read about.
        cfg.log_level = 'WARNING'
        runner = build_runner(cfg, RunOwner)
        model = bare_model(runner)
        load_float(model, checkpoint, trust)
        wanted = int(cfg.test_cfg.calibration.num_images)
        images, preparation = _images(runner, model, wanted)
        seconds = dict(
            prepare=preparation,
            # Of the float, the rounded and the learned model.
            evaluate=evaluation_seconds(runner, model) * (1 + 2 * QUANTIZED),
        )
        teacher = model.prepare(images.batch(0)[:1])
        costs = _unit_costs(model, teacher, images)
        seconds.update(_learning(model, teacher, images, wanted, costs))
        seconds['total'] = sum(seconds.values())
        return dict(
            units=[
                dict(
                    name=unit.name,
                    layers=list(unit.layers),
                    bits={name: model.bits[name] for name in unit.layers},
                )
                for unit in model.units
            ],
            account=model.account.to_dict(),
            seconds=seconds,
            memory_mb=_memory_mb(images, wanted, costs),
        )


def _images(
    runner: Runner, model: BRECQ, wanted: int
) -> tuple[CachedBatches, float]:
    """Return a few calibration images, and the seconds to load all."""
    count = min(PROBED_IMAGES, wanted)
    start = time.perf_counter()
    calibration_images(runner, model, max(2, count // 2))
    half = _since(start)
    images = calibration_images(runner, model, count)
    whole = _since(start) - half
    # What opens a data set takes its time once.
    each = max(0.0, whole - half) / (count - count // 2)
    return images, whole + each * (wanted - count)


def _since(start: float) -> float:
    return time.perf_counter() - start


def evaluation_seconds(runner: Runner, model: BRECQ) -> float:
    """Return about how many seconds an evaluation of the model takes.

    Args:
        runner (Runner): The runner, whose test images are used.
        model (BRECQ): The float model.
    """
    loop: Any = runner.test_loop
    if not loop.evaluator.metrics or not len(loop.dataloader):
        return 0.0
    batches = iter(loop.dataloader)
    with torch.no_grad():
        model.eval().test_step(next(batches))  # Workers and caches are new.
        start, count = time.perf_counter(), 0
        for batch in islice(batches, 2):
            model.test_step(batch)
            count += 1
    each = _since(start) / count if count else 0.0
    return each * len(loop.dataloader)


def _unit_costs(
    model: BRECQ, teacher: nn.Module, images: CachedBatches
) -> dict[str, UnitCost]:
    """Return what each unit takes in a pass of the float network."""
    batch = images.batch(0)
    found = {unit.name: UnitCost() for unit in model.units}

    def enter(cost: UnitCost) -> Callable:
        def hook(*_: Any) -> None:
            cost.seconds -= time.perf_counter()

        return hook

    def leave(cost: UnitCost) -> Callable:
        def hook(_: Any, args: Any, kwargs: Any, output: Any) -> None:
            cost.seconds += time.perf_counter()
            cost.elements = sum(
                x.numel() for x in _real([args, kwargs, output])
            ) // len(batch)

        return hook

    with torch.no_grad(), ExitStack() as stack:
        run_float(teacher, batch)
        for name, cost in found.items():
            unit = teacher.get_submodule(name)
            for hook in (
                unit.register_forward_pre_hook(enter(cost)),
                unit.register_forward_hook(leave(cost), with_kwargs=True),
            ):
                stack.callback(hook.remove)
        run_float(teacher, batch)
    for cost in found.values():
        cost.seconds = max(cost.seconds / len(batch), 1e-9)
    return found


def _real(nested: Any) -> list[Tensor]:
    return [x for x in tensors(nested) if x.is_floating_point()]


def _learning(
    model: BRECQ,
    teacher: nn.Module,
    images: CachedBatches,
    wanted: int,
    costs: dict[str, UnitCost],
) -> dict[str, float]:
    """Return the seconds of nearest rounding and of the reconstruction.

    A unit takes a time that grows with the images, and one that grows with
    the iterations; both grow with the time of its forward pass.
    """
    whole = sum(cost.seconds for cost in costs.values())
    for _ in _probe(model, teacher, images, FEW):
        pass  # Kernels are compiled once.
    few, more = (
        list(_probe(model, teacher, images, count)) for count in (FEW, MORE)
    )
    passes = sum(costs[r.name].seconds for _, r in few) or 1e-9
    # Seconds of an iteration, in seconds of a pass of an image.
    steps = step_seconds = 0.0
    for (_, one), (_, other) in zip(few, more):
        added = other.iterations - one.iterations
        if added > 0:
            steps += costs[one.name].seconds
            step_seconds += max(0.0, other.seconds - one.seconds) / added
    rate = step_seconds / steps if steps else 0.0
    fixed = sum(
        max(0.0, r.seconds - r.iterations * rate * costs[r.name].seconds)
        for _, r in few
    )
    fixed *= wanted / len(images) * whole / passes
    watched = min(wanted, WATCHED) / min(len(images), WATCHED)
    learned = sum(
        _iterations(model.reconstructor, unit)
        * rate
        * costs[unit.name].seconds
        for unit in model.units
    )
    refiner = model.reconstructor.refiner
    if refiner is not None:
        learned += refiner.iterations * rate * whole
    return dict(
        nearest=fixed,
        reconstruct=few[0][0] * watched + fixed + learned if few else 0.0,
    )


def _probe(
    model: BRECQ, teacher: nn.Module, images: CachedBatches, count: int
) -> Iterator[tuple[float, UnitReport]]:
    """Yield the seconds before a unit, and its report, for some units."""
    probe = copy.deepcopy(model)
    reconstructor: Any = probe.reconstructor
    reconstructor.refiner = reconstructor.stopping = None
    if _iterations(reconstructor, probe.units[0]):
        reconstructor.iterations = count
    learns = min(PROBED_UNITS, len(probe.units))
    start = time.perf_counter()
    for report in probe.reconstruct(teacher, images, 0):
        learns -= bool(report.iterations) or not _iterations(
            reconstructor, probe.units[0]
        )
        yield max(0.0, _since(start) - report.seconds), report
        start = time.perf_counter()
        if not learns:
            break


def _iterations(reconstructor: Reconstructor, unit: Any) -> int:
    """Return how many iterations a unit learns, 0 if nothing is learned."""
    each = getattr(reconstructor, 'iterations', 0)
    return each * max(1, min(unit.depth, len(unit.layers)))


def _memory_mb(
    images: CachedBatches,
    wanted: int,
    costs: dict[str, UnitCost],
) -> int:
    """Return the peak memory of the run, in MiB."""
    largest = 2 * max(cost.elements for cost in costs.values()) * BYTES
    budget = images.store.budget
    needed = largest * wanted
    if budget is not None:
        needed = min(needed, budget)
    now = largest * len(images)
    return round(peak_memory_mb() + max(0, needed - now) / 2**20)
