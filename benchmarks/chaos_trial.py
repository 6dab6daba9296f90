"""A trial of chaos.py: a run, what befalls it, and how it goes on."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from chaos_runs import HANGS, Harm, Run, Runs, content

#: The run ended with the same bits, without or with a word of what had
#: happened; it was refused, with the file's name; it ended with the same bits
#: or values although it said nothing; with others, and said nothing.
VERDICTS = 'equal', 'told', 'refused', 'no effect', 'silent'


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

    def others(self) -> list[str]:
        """Return what is not as a run that was left alone leaves it."""
        found, expected = content(self.folder), self.alone.content
        return sorted(
            name
            for name in {*found, *expected}
            if found.get(name) != expected.get(name)
        )

    def goes_on(self) -> None:
        """Let the run go on to its end.

        Raises:
            Wrong: If it does not end as one that was left alone.
        """
        run = self.start(resume=True)
        if ended(run):
            raise Wrong(f'does not go on: {run.said[-1500:]}')
        if self.kind == 'search':  # One that was done is done once more.
            forget_kept(self.folder)
        if others := self.others():
            raise Wrong(f'other than a run that was left alone: {others}')


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


def forget_kept(folder: Path) -> None:
    """Remove what a run has moved aside, such as ``quantized.1.pth``."""
    for path in folder.glob('*'):
        if re.fullmatch(r'.+\.\d{1,2}(\.(?!tmp)\w+)?', path.name):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
