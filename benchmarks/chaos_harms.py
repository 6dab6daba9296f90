"""What befalls the runs of chaos.py.

Each harm yields what came of it, a word of :data:`VERDICTS` for each trial,
and raises :class:`Wrong` if that is nothing that may come of it.
"""

from __future__ import annotations

import errno
import os
import random
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from chaos_runs import HANGS, KINDS, Harm, Run, Runs, content
from mmengine.registry import MODELS
from safetensors.torch import load_file, save_file

import mmrazor_brecq
from mmrazor_brecq.checkpoint import (
    load_tensors,
    read_checkpoint,
    save_tensors,
)

#: The run ended with the same bits, without or with a word of what had
#: happened; it was refused, with the file's name; it ended with the same bits
#: or values although it said nothing; with others, and said nothing.
VERDICTS = 'equal', 'told', 'refused', 'no effect', 'silent'
#: Errors of a disk; those after the first two can remove nothing, either.
DISK = errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO
#: Bits that are flipped in copies of one unfinished run.
FLIPS = 3
#: Those that are flipped in a quantized checkpoint.
CHECKPOINT_FLIPS = 10


class Wrong(Exception):
    """What should not have come of a harm."""


@dataclass
class Trial:
    """One run and what befalls it.

    Attributes:
        runs (Runs): Starts it.
        kind (str): A key of ``KINDS``.
        chance (random.Random): Decides everything.
    """

    runs: Runs
    kind: str
    chance: random.Random

    def __post_init__(self) -> None:
        self.alone = self.runs.leave_alone(self.kind)
        self.folder = self.runs.new() / 'run'

    def start(self, resume: bool = False, **harm: object) -> Run:
        """Start the run; see :meth:`Runs.start`."""
        return self.runs.start(self.kind, self.folder, resume, **harm)

    def step(self) -> int:
        """Return the number of a change that a run makes to its folder."""
        return self.chance.randrange(self.alone.steps)

    def killed(self, resume: bool = False) -> bool:
        """Kill the run at a random moment, or before a random change.

        Returns:
            bool: Whether it was at work still.
        """
        if self.chance.random() < 0.5:
            run = self.start(resume, harm=at(self.step(), die))
            return ended(run) == -signal.SIGKILL
        run = self.start(resume)
        run.end(self.chance.uniform(0, self.alone.seconds))
        return run.kill()

    def equals(self) -> bool:
        """Return whether the folder has all that it would have anyway."""
        return content(self.folder) == self.alone.content

    def goes_on(self) -> None:
        """Let the run go on to its end.

        Raises:
            Wrong: If it does not end as one that was left alone.
        """
        run = self.start(resume=True)
        if ended(run):
            raise Wrong(f'does not go on: {run.said[-500:]}')
        if self.kind == 'search':  # One that was done is done once more.
            forget_kept(self.folder)
        if not self.equals():
            found, expected = content(self.folder), self.alone.content
            other = sorted(
                name
                for name in {*found, *expected}
                if found.get(name) != expected.get(name)
            )
            raise Wrong(f'other than a run that was left alone: {other}')


def ended(run: Run) -> int:
    """Return how a run ended.

    Raises:
        Wrong: If it does not end, or with a traceback.
    """
    status = run.end()
    if status is None:
        run.kill()
        raise Wrong(f'hangs for {HANGS} s: {run.said[-500:]}')
    if 'Traceback' in run.said:
        raise Wrong(f'ends with a traceback: {run.said[-1500:]}')
    return status


def at(number: int, harm: Callable[[], None]) -> Harm:
    """Do harm before the change of that number."""

    def do(found: int, event: str, path: str) -> None:
        if found == number:
            harm()

    return do


def die() -> None:
    """Kill this process."""
    os.kill(os.getpid(), signal.SIGKILL)


def kill(trial: Trial) -> Iterator[str]:
    """Kill a run, perhaps again when it goes on, and let it go on."""
    while not trial.killed():
        shutil.rmtree(trial.folder, ignore_errors=True)
    while trial.chance.random() < 0.3:
        trial.killed(resume=True)
    trial.goes_on()
    yield 'equal'


def fill(trial: Trial) -> Iterator[str]:
    """Give a run a disk that is full or fails, and later a better one."""
    way = trial.chance.choice([full_disk, small_files, failing_disk])
    with way(trial) as run:
        status = ended(run)
        if status:
            check_told(trial, run)
    trial.goes_on()
    yield 'told' if status else 'equal'


@contextmanager
def full_disk(trial: Trial) -> Iterator[Run]:
    """Run on a disk of some kilobytes, where this process may mount one."""
    disk = trial.folder.parent
    size = trial.chance.randrange(2**14, 2**18, 2**12)
    disk.mkdir()
    command = ['mount', '-t', 'tmpfs', '-o', f'size={size}', 'none', str(disk)]
    if subprocess.run(command, capture_output=True).returncode:
        with small_files(trial) as run:
            yield run
        return
    try:
        yield trial.start()
        kept = disk.with_suffix('.kept')
        shutil.copytree(disk, kept)
    finally:
        subprocess.run(['umount', str(disk)], check=True)
    disk.rmdir()
    kept.rename(disk)


@contextmanager
def small_files(trial: Trial) -> Iterator[Run]:
    """Run with a limit to the bytes of a file."""
    yield trial.start(limit=trial.chance.randrange(2**16))


@contextmanager
def failing_disk(trial: Trial) -> Iterator[Run]:
    """Run on a disk that fails from a random change on."""
    first, number = trial.step(), trial.chance.choice(DISK)

    def fail(found: int, event: str, path: str) -> None:
        frees = event in ('os.remove', 'os.rmdir')
        if found >= first and not (frees and number in DISK[:2]):
            raise OSError(number, os.strerror(number), path)

    yield trial.start(harm=fail)


def check_told(trial: Trial, run: Run) -> None:
    """See that a run said in one message what to do.

    Raises:
        Wrong: If it did not.
    """
    last = run.said.strip().splitlines()[-1:]
    if not last or not (
        last[0].startswith('OSError: ')
        and str(trial.folder) in last[0]
        and 'the same command' in last[0]
    ):
        raise Wrong(f'does not say how to go on: {run.said[-1500:]}')


def vanish(trial: Trial) -> Iterator[str]:
    """Remove a run's folder, or what is in it, while it works."""
    gone = trial.folder / trial.chance.choice(['.', 'progress'])
    remove = at(trial.step(), lambda: shutil.rmtree(gone, ignore_errors=True))
    run = trial.start(harm=remove)
    status = ended(run)
    if status:
        check_told(trial, run)
    trial.goes_on()
    yield 'told' if status else 'equal'


def race(trial: Trial) -> Iterator[str]:
    """Start three runs in one folder, and perhaps kill one of them."""
    pause = trial.alone.seconds / 3
    runs = []
    for _ in range(3):
        runs.append(trial.start(resume=trial.chance.random() < 0.5))
        runs[-1].end(trial.chance.uniform(0, pause))
    killed = None
    if trial.chance.random() < 0.5:
        killed = trial.chance.choice(runs)
        killed.kill()
    for run in runs:
        status = None if run is killed else ended(run)
        if status and 'is in use by process' not in run.said:
            raise Wrong(f'refused otherwise: {run.said[-1500:]}')
    forget_kept(trial.folder)  # By one that came late.
    trial.goes_on()
    yield 'equal'


def forget_kept(folder: Path) -> None:
    """Remove what a run has moved aside, such as ``quantized.1.pth``."""
    for path in folder.glob('*'):
        if re.fullmatch(r'.+\.\d{1,2}(\.(?!tmp)\w+)?', path.name):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def flip_run(trial: Trial) -> Iterator[str]:
    """Flip single bits of what a run keeps, and let it go on with that."""
    before = trial.folder.with_name('before')
    if trial.chance.random() < 0.25:
        shutil.copytree(trial.alone.folder, before)
    else:
        while not kept(trial.folder):
            shutil.rmtree(trial.folder, ignore_errors=True)
            trial.killed()
        trial.folder.rename(before)
    for _ in range(FLIPS):
        shutil.rmtree(trial.folder, ignore_errors=True)
        shutil.copytree(before, trial.folder)
        path = trial.chance.choice(kept(trial.folder))
        where = flip(path, trial.chance)
        run = trial.start(resume=True)
        status, named = ended(run), path.name in run.said
        forget_kept(trial.folder)
        if status and not named:
            raise Wrong(f'{where}, refused otherwise: {run.said[-1500:]}')
        if status:
            path.unlink()
            trial.goes_on()
            yield 'refused'
        elif not trial.equals():
            trial.goes_on()
            yield 'silent'
        else:
            told = re.search(f"{path}'? is (damaged|no whole)", run.said)
            yield 'told' if told else 'no effect'


def kept(folder: Path) -> list[Path]:
    """Return the files with which a run would go on."""
    return [
        path
        for path in sorted(folder.rglob('*'))
        if path.suffix in ('.pth', '.safetensors', '.json')
        and not path.relative_to(folder).parts[0][0].isdigit()
        and path.name != 'search.json'
    ]


def flip(path: Path, chance: random.Random) -> str:
    """Flip a bit of a file; return which."""
    data = bytearray(path.read_bytes())
    place, bit = chance.randrange(len(data)), chance.randrange(8)
    data[place] ^= 1 << bit
    path.write_bytes(data)
    return f'{path}, byte {place} of {len(data)}, bit {bit}'


def flip_checkpoint(trial: Trial) -> Iterator[str]:
    """Flip single bits of a quantized checkpoint, and load it."""
    trial.folder.mkdir(parents=True)
    source = trial.alone.folder / KINDS[trial.kind].result
    expected, meta = loaded(trial, source)
    for ending in ('.pth', '.safetensors'):
        path = trial.folder / f'quantized{ending}'
        convert(source, path)
        whole = path.read_bytes()
        for _ in range(CHECKPOINT_FLIPS // 2):
            where = flip(path, trial.chance)
            try:
                found, found_meta = loaded(trial, path)
            except ValueError as error:
                if path.name not in str(error):
                    raise Wrong(f'{where}: {error}') from error
                yield 'refused'
            else:
                same = found_meta == meta and all(
                    torch.equal(found[name], expected[name])
                    for name in {*found, *expected}
                )
                yield 'no effect' if same else 'silent'
            path.write_bytes(whole)


def convert(source: Path, path: Path) -> None:
    """Copy a checkpoint to a container of another kind, or of the same."""
    read = load_file if source.suffix == '.safetensors' else load_tensors
    write = save_file if path.suffix == '.safetensors' else save_tensors
    write(read(str(source)), str(path))


def loaded(trial: Trial, path: Path) -> tuple[dict, dict]:
    """Return the state of a network that a file is loaded into, and meta."""
    network = MODELS.build(trial.runs.architecture)
    state = mmrazor_brecq.load(network, str(path)).state_dict()
    return state, read_checkpoint(str(path))['meta']


HARMS: dict[str, Callable[[Trial], Iterator[str]]] = dict(
    kill=kill,
    fill=fill,
    vanish=vanish,
    race=race,
    flip_run=flip_run,
    flip_checkpoint=flip_checkpoint,
)
