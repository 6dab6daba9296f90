"""Kills runs, fills their disk, flips bits of their files, and races them.

    python benchmarks/chaos.py --seconds 600

Every trial is a run of the demo's ResNet-18 that something befalls at random,
and that goes on afterwards by the command that its message names. What it ends
with is compared, bit by bit, with a run that was left alone. Trials of all
kinds take turns until the time is up. The exit status is 1 if a result was
another one, if damage was used without a word, or if a traceback was shown.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import torch
from mmengine.logging import MMLogger
from rich.console import Console
from rich.table import Table
from torch import nn

from mmrazor_brecq.checkpoint import load_tensors, read_checkpoint
from mmrazor_brecq.engine.progress import Progress

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / 'configs/brecq/resnet/brecq_resnet18_w4a4_fashion-mnist.py'
FLOAT = ROOT / 'demo/resnet18_fashion-mnist.pth'
#: A run of seconds, with all that a long one has.
QUICK: dict[str, Any] = {
    'model.reconstructor.iterations': 2,
    'model.reconstructor.batch_size': 8,
    'model.reconstructor.autocast': None,
    'test_cfg.calibration.num_images': 24,
    'test_cfg.calibration.dataloader.batch_size': 12,
    'test_dataloader.batch_size': 32,
    'test_dataloader.dataset.indices': 64,
    'test_dataloader.dataset.pipeline.0.scale': 32,
    'test_cfg.calibration.dataloader.dataset.pipeline.0.scale': 32,
}
REFINER = dict(type='NetworkRefiner', iterations=3, batch_size=8)
SEARCH: dict[str, Any] = {
    'mixed_precision.reconstructor': dict(type='NearestRounding'),
    'mixed_precision.bits': [2, 4],
    'mixed_precision.num_images': 12,
    'mixed_precision.error': dict(type='FisherError', draws=1),
}
#: What is run, by name: its options, beside those of all.
KINDS: dict[str, dict[str, Any]] = {
    'default': {},
    'best': {'model.reconstructor.refiner': REFINER},
    'spill': {'test_cfg.calibration.memory': '1kB'},
    'search': SEARCH,
}
#: Bits that one trial of flips flips.
FLIPS = 50


@dataclass
class Outcome:
    """What came of trials of one kind.

    Attributes:
        trials (int): How many there were.
        equal (int): Those with the bits of the run that was left alone.
        told (int): Damages that were told of, or refusals.
        silent (int): Damages that were used without a word.
        wrong (list[str]): What went wrong, a line each.
    """

    trials: int = 0
    equal: int = 0
    told: int = 0
    silent: int = 0

    def __post_init__(self) -> None:
        self.wrong: list[str] = []


class Runs:
    """Starts runs, and knows what one that is left alone ends with.

    Args:
        folder (Path): Where all of it goes.
        chance (random.Random): Decides what befalls the runs.
    """

    def __init__(self, folder: Path, chance: random.Random) -> None:
        self.folder = folder
        self.chance = chance
        self.count = 0
        self.alone: dict[str, Any] = {}
        self.seconds: dict[str, float] = {}

    def new(self) -> Path:
        """A folder of a run that is not there yet."""
        self.count += 1
        return self.folder / f'{self.count}'

    def start(
        self,
        kind: str,
        folder: Path,
        resume: bool = False,
        limit: Optional[int] = None,
    ) -> subprocess.Popen:
        """Start a run.

        Args:
            kind (str): Of :data:`KINDS`.
            folder (Path): Its folder.
            resume (bool): Whether it goes on.
            limit (int, optional): Bytes of the largest file that it may
                write.
        """
        options = {**QUICK, **KINDS[kind]}
        tool = 'search_bits' if kind == 'search' else 'ptq'
        command = [
            *(sys.executable, str(ROOT / 'tools' / f'{tool}.py')),
            *(str(CONFIG), str(FLOAT), '--work-dir', str(folder)),
            *('--cfg-options', *(f'{k}={v}' for k, v in options.items())),
        ]
        if kind == 'search':
            command += ['--equal-to', 'w4']
        elif resume:
            command += ['--resume']

        def limited() -> None:
            if limit is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        return subprocess.Popen(
            command,
            env=dict(os.environ, MMRAZOR_BRECQ_DEMO=str(ROOT / 'demo')),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=limited,
        )

    def leave_alone(self, kind: str) -> None:
        """Run once without any harm, if that was not done before."""
        if kind in self.alone:
            return
        folder, start = self.new(), time.perf_counter()
        said = finish(self.start(kind, folder))
        self.alone[kind] = result(kind, folder)
        self.seconds[kind] = time.perf_counter() - start
        if self.alone[kind] is None:
            raise RuntimeError(f'A {kind} run fails by itself: {said[-2000:]}')

    def judge(self, kind: str, folder: Path, outcome: Outcome) -> None:
        """Let a run go on to its end, and compare what it ends with."""
        process = self.start(kind, folder, resume=True)
        said = finish(process)
        found = result(kind, folder)
        if process.returncode == 0 and equal(found, self.alone[kind]):
            outcome.equal += 1
            left = [x.name for x in folder.rglob('*.tmp')]
            if left or (folder / 'run.lock').exists():
                outcome.wrong.append(f'{kind}: left {left} or its lock')
        else:
            outcome.wrong.append(f'{kind} in {folder}: {said[-400:]}')
            return
        shutil.rmtree(folder)


def finish(process: subprocess.Popen) -> str:
    """Wait for a process; what it said on stderr."""
    return process.communicate()[1]


def result(kind: str, folder: Path) -> Any:
    """What a run has ended with; None if it has not."""
    try:
        if kind != 'search':
            path = str(folder / 'quantized.pth')
            return read_checkpoint(path)['state_dict']
        measured = json.loads((folder / 'sensitivity.json').read_text())
        found = json.loads((folder / 'search.json').read_text())['found']
    except (OSError, ValueError):
        return None
    bits = [(x['bits'], x['loss'], x['costs']) for x in found]
    return measured, bits


def equal(one: Any, two: Any) -> bool:
    """Whether two results are the same, bit by bit."""
    if one is None or not isinstance(two, dict):
        return one is not None and one == two
    return one.keys() == two.keys() and all(
        torch.equal(one[key], two[key]) for key in one
    )


def kill(runs: Runs, kind: str, outcome: Outcome) -> None:
    """Kill a run once or more, at any moment, and let it go on."""
    folder = runs.new()
    resume = False
    while True:
        process = runs.start(kind, folder, resume)
        try:
            process.wait(runs.chance.uniform(0, 1.1 * runs.seconds[kind]))
        except subprocess.TimeoutExpired:
            process.kill()
        finish(process)
        resume = True
        if runs.chance.random() < 0.7:
            break
    outcome.trials += 1
    runs.judge(kind, folder, outcome)


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[bool]:
    """A disk of some bytes, where this process may mount one.

    Yields:
        bool: Whether it may.
    """
    folder.mkdir(parents=True)
    options = ['-t', 'tmpfs', '-o', f'size={size}', 'none', str(folder)]
    mounted = os.geteuid() == 0 and not (
        subprocess.run(['mount', *options], capture_output=True).returncode
    )
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(['umount', str(folder)], check=True)


def fill(runs: Runs, kind: str, outcome: Outcome) -> None:
    """Give a run too small a disk, then a larger one."""
    disk = runs.new()
    size = runs.chance.randrange(2**15, 2**22, 2**12)
    with small_disk(disk, size) as mounted:
        folder = disk / 'run'
        limit = None if mounted else size
        process = runs.start(kind, folder, limit=limit)
        said = finish(process)
        outcome.trials += 1
        if process.returncode:
            outcome.told += 1
            lines = [x for x in said.splitlines() if x.startswith('OSError')]
            told = (
                lines and str(folder) in lines[-1] and 'same command' in said
            )
            if 'Traceback' in said or not told:
                outcome.wrong.append(f'{kind}, full: {said[-400:]}')
        left = list(folder.rglob('*.tmp')) if folder.exists() else []
        if left:
            outcome.wrong.append(f'{kind}, full: left {left[0].name}')
        if mounted:
            subprocess.run(
                ['mount', '-o', 'remount,size=256m', str(disk)], check=True
            )
        runs.judge(kind, folder, outcome)
    shutil.rmtree(disk, ignore_errors=True)


def flipped(runs: Runs, path: Path) -> bytes:
    """Flip a bit of a file; what it was before."""
    whole = path.read_bytes()
    data = bytearray(whole)
    data[runs.chance.randrange(len(data))] ^= 1 << runs.chance.randrange(8)
    path.write_bytes(data)
    return whole


def flip_checkpoint(runs: Runs, kind: str, outcome: Outcome) -> None:
    """Flip bits of a quantized checkpoint, in both containers."""
    from safetensors.torch import save_file

    folder = runs.new()
    finish(runs.start(kind, folder))
    paths = [folder / 'quantized.pth', folder / 'quantized.safetensors']
    save_file(load_tensors(str(paths[0])), paths[1])
    for i in range(FLIPS):
        path = paths[i % 2]
        whole = flipped(runs, path)
        outcome.trials += 1
        try:
            found = read_checkpoint(str(path))['state_dict']
        except ValueError:
            outcome.told += 1
        else:  # What it means is what counts: some bits mean nothing.
            same = equal(found, runs.alone[kind])
            outcome.equal += same
            outcome.silent += not same
        path.write_bytes(whole)
    shutil.rmtree(folder)


def flip_progress(runs: Runs, kind: str, outcome: Outcome) -> None:
    """Flip bits of what an unfinished run keeps; let it go on at last."""
    folder = runs.new()
    process = runs.start(kind, folder)
    progress = folder / 'progress'
    while process.poll() is None and not (progress / '0004.pth').exists():
        time.sleep(0.01)
    process.kill()
    finish(process)
    if not (progress / 'run.json').exists():
        return  # It was quicker.
    content = json.loads((progress / 'run.json').read_text())
    files = [progress / f'{i:04d}.pth' for i in range(len(content['units']))]
    states = {
        unit['name']: load_tensors(str(file))
        for unit, file in zip(content['units'], files)
    }
    for _ in range(FLIPS):
        path = runs.chance.choice([*files, progress / 'run.json'])
        whole = flipped(runs, path)
        outcome.trials += 1
        try:
            read = Progress(str(progress), content['identity'], True)
            found = read.units(lambda name: Holder(states[name]))
        except ValueError:
            outcome.told += 1
        else:
            same = all(equal(found[name], states[name]) for name in found)
            whole_run = len(found) == len(files)
            outcome.silent += not same
            outcome.equal += same and whole_run
            outcome.told += same and not whole_run
        path.write_bytes(whole)
    path = runs.chance.choice(files)
    flipped(runs, path)
    last = Outcome()
    runs.judge(kind, folder, last)
    outcome.trials += 1
    outcome.told += last.equal
    outcome.wrong += last.wrong


class Holder(nn.Module):
    """A module of a certain state."""

    def __init__(self, state: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.state = state

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The state."""
        return self.state


def race(runs: Runs, kind: str, outcome: Outcome) -> None:
    """Start two runs in one folder: one of them has to be refused."""
    folder = runs.new()
    pair = [runs.start(kind, folder)]
    time.sleep(runs.chance.uniform(0, 0.3 * runs.seconds[kind]))
    pair.append(runs.start(kind, folder))
    said = [finish(process) for process in pair]
    codes = [process.returncode for process in pair]
    outcome.trials += 1
    if sorted(codes) == [0, 1]:
        refusal = said[codes.index(1)]
        outcome.told += 1
        if 'is in use by process' not in refusal or 'Traceback' in refusal:
            outcome.wrong.append(f'{kind}, race: {refusal[-400:]}')
    else:
        outcome.wrong.append(f'{kind}, race: ended with {codes}')
    if equal(result(kind, folder), runs.alone[kind]):
        outcome.equal += 1
        shutil.rmtree(folder)
    else:
        outcome.wrong.append(f'{kind}, race in {folder}: another result')


TRIALS: dict[str, Callable[[Runs, str, Outcome], None]] = dict(
    kill=kill,
    fill=fill,
    race=race,
    checkpoint=flip_checkpoint,
    progress=flip_progress,
)


def main() -> int:
    """Let things happen until the time is up, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--seconds', type=float, default=600)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--kinds', nargs='+', choices=KINDS, default=[*KINDS])
    parser.add_argument(
        '--trials', nargs='+', choices=TRIALS, default=[*TRIALS]
    )
    args = parser.parse_args()

    end = time.monotonic() + args.seconds
    outcomes: dict[tuple[str, str], Outcome] = {}
    pairs = [
        (trial, kind)
        for trial in args.trials
        for kind in args.kinds
        if kind != 'search' or trial in ('kill', 'fill', 'race')
    ]
    console = Console()
    MMLogger.get_current_instance().setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder:
        runs = Runs(Path(folder), random.Random(args.seed))
        left: list[tuple[str, str]] = []
        while time.monotonic() < end:
            left = left or pairs[:]
            trial, kind = left.pop(runs.chance.randrange(len(left)))
            runs.leave_alone(kind)
            outcome = outcomes.setdefault((trial, kind), Outcome())
            before = len(outcome.wrong)
            TRIALS[trial](runs, kind, outcome)
            for line in outcome.wrong[before:]:
                console.print(f'{trial}: {line}', markup=False)
    table = Table(
        *('what befell it', 'run', 'trials', 'equal'),
        *('told', 'silent', 'wrong'),
    )
    for (trial, kind), found in sorted(outcomes.items()):
        numbers = found.trials, found.equal, found.told, found.silent
        table.add_row(trial, kind, *map(str, numbers), str(len(found.wrong)))
    console.print(table)
    return any(x.silent or x.wrong for x in outcomes.values())


if __name__ == '__main__':
    sys.exit(main())
