"""What befalls the runs of chaos.py.

Each harm yields what came of it, one of :data:`VERDICTS` for each trial, and
raises :class:`Wrong` if that is nothing that may come of it.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from chaos_flips import flip_checkpoint, flip_run
from chaos_runs import Run
from chaos_trial import Trial, Wrong, at, ended, forget_kept

#: Errors of a disk; those after the first two can remove nothing, either.
DISK = errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO


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
    words = f'OSError: The run in {str(trial.folder)!r} .* the same command'
    # In a temporary folder that is full nothing is begun.
    if not last or not re.match(f'{words}|.* in TMPDIR$', last[0]):
        raise Wrong(f'does not say how to go on: {run.said[-1500:]}')


def vanish(trial: Trial) -> Iterator[str]:
    """Remove a run's folder, or its progress, while it works."""
    names = trial.chance.choice(['run', 'run/*progress*'])

    def remove() -> None:
        for folder in trial.folder.parent.glob(names):
            shutil.rmtree(folder, ignore_errors=True)

    run = trial.start(harm=at(trial.step(), remove))
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


HARMS: dict[str, Callable[[Trial], Iterator[str]]] = dict(
    kill=kill,
    fill=fill,
    vanish=vanish,
    race=race,
    flip_run=flip_run,
    flip_checkpoint=flip_checkpoint,
)
