"""The runs of chaos.py: of a toy network, as forks of one warm process.

To start Python and to import torch takes longer than such a run. So this
process imports everything, compiles all kernels, and works on nothing else;
each run is a fork of it that calls the script in ``tools/`` as a shell would.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import multiprocessing
import os
import re
import resource
import runpy
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from chaos_toy import warm, write_toy

ROOT = Path(__file__).resolve().parents[1]
#: Seconds after which a run of seconds is taken to hang.
HANGS = 300


@dataclass(frozen=True)
class Kind:
    """A kind of run.

    Attributes:
        tool (str): Script of ``tools/``.
        schedule (str): Of ``configs/_base_/schedules``.
        options (tuple[str]): Arguments of the script.
        resume (tuple[str]): Those with which it goes on.
        result (str): The file that it makes.
    """

    tool: str = 'ptq'
    schedule: str = 'default'
    options: tuple[str, ...] = ()
    resume: tuple[str, ...] = ('--resume',)
    result: str = 'quantized.pth'


def options(*pairs: str) -> tuple[str, ...]:
    """Changes to the config, as a script takes them."""
    return ('--cfg-options', *pairs)


KINDS = dict(
    default=Kind(),
    best=Kind(
        schedule='best',
        options=options('test_cfg.checkpoint=quantized.safetensors'),
        result='quantized.safetensors',
    ),
    spill=Kind(options=options('test_cfg.calibration.memory=1kB')),
    search=Kind(
        tool='search_bits',
        options=('--equal-to', 'w4'),
        resume=(),
        result='sensitivity.json',
    ),
)

#: What of a report differs from run to run: times and memory, and so its hash.
PASSING = {'seconds', 'peak_memory_mb', 'activations_mb', 'checksum'}
#: What changes a folder, as Python's audit events name it.
CHANGES = {'open', 'os.rename', 'os.remove', 'os.mkdir', 'os.rmdir'}
#: Does harm before a change: takes its number, its event and its path.
Harm = Callable[[int, str, str], None]


class Run:
    """A run in a process of its own.

    Args:
        command (list[str]): The script and its arguments.
        folder (Path): The folder whose changes are watched.
        harm (callable, optional): See :data:`Harm`.
        limit (int, optional): Bytes of the largest file that it may write.
    """

    def __init__(
        self,
        command: list[str],
        folder: Path,
        harm: Optional[Harm] = None,
        limit: Optional[int] = None,
    ) -> None:
        # A pipe, for files may be limited; with room for all that it says.
        reader, writer = os.pipe()
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 2**20)
        self.output = open(reader, errors='replace')
        self.said = ''

        def work() -> None:
            os.dup2(writer, 1)
            os.dup2(writer, 2)
            if limit is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            if harm is not None:
                watch(folder, harm)
            sys.argv = command
            runpy.run_path(command[0], run_name='__main__')

        context = multiprocessing.get_context('fork')
        self.process = context.Process(target=work)
        self.process.start()
        os.close(writer)

    def end(self, seconds: float = HANGS) -> Optional[int]:
        """Wait, and return the exit status; None if it works still."""
        self.process.join(seconds)
        if self.process.exitcode is not None and not self.output.closed:
            with self.output:
                self.said = self.output.read()
        return self.process.exitcode

    def kill(self) -> bool:
        """Kill it with SIGKILL; return whether it was at work."""
        self.process.kill()
        return self.end() == -signal.SIGKILL


def watch(folder: Path, harm: Harm) -> None:
    """Do harm before each change of a folder, for the rest of the process."""
    start, numbers, at_work = str(folder), itertools.count(), False

    def hook(event: str, args: tuple) -> None:
        nonlocal at_work
        if at_work or event not in CHANGES:
            return
        if event == 'open' and not args[2] & (os.O_WRONLY | os.O_RDWR):
            return
        path = os.path.abspath(os.fsdecode(args[0]))
        if not path.startswith(start):
            return
        at_work = True
        try:
            harm(next(numbers), event, path)
        finally:
            at_work = False

    sys.addaudithook(hook)


@dataclass
class Alone:
    """A run that was left alone.

    Attributes:
        folder (Path): What it left.
        content (dict): See :func:`content`.
        seconds (float): How long it took.
        steps (int): How often it changed its folder.
    """

    folder: Path
    content: dict[str, Any]
    seconds: float
    steps: int


class Runs:
    """Starts runs of a toy network, and knows what they end with.

    Args:
        folder (Path): The folder of everything.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.numbers = itertools.count()
        self.alone: dict[str, Alone] = {}
        self.architecture = write_toy(folder)
        warm(folder, self.architecture)

    def new(self) -> Path:
        """Return a path at which nothing lies."""
        return self.folder / f'{next(self.numbers):05d}'

    def start(
        self, kind: str, folder: Path, resume: bool = False, **harm: Any
    ) -> Run:
        """Start a run.

        Args:
            kind (str): A key of :data:`KINDS`.
            folder (Path): The folder of the run.
            resume (bool): Whether it goes on with what lies there.
            **harm: As for :class:`Run`.
        """
        how = KINDS[kind]
        command = [
            str(ROOT / 'tools' / f'{how.tool}.py'),
            str(self.folder / f'{how.schedule}.py'),
            str(self.folder / 'float.pth'),
            *('--work-dir', str(folder)),
            *how.options,
            *(how.resume if resume else ()),
        ]
        return Run(command, folder, **harm)

    def leave_alone(self, kind: str) -> Alone:
        """Return a run without any harm; it is done once.

        Raises:
            RuntimeError: If it fails.
        """
        if kind not in self.alone:
            folder, start = self.new() / 'run', time.perf_counter()
            steps = multiprocessing.Value('i', 0)

            def count(number: int, event: str, path: str) -> None:
                steps.value = number + 1

            run = self.start(kind, folder, harm=count)
            if run.end() != 0:
                raise RuntimeError(f'A {kind} run fails: {run.said[-2000:]}')
            seconds = time.perf_counter() - start
            found = content(folder)
            self.alone[kind] = Alone(folder, found, seconds, steps.value)
        return self.alone[kind]


def content(folder: Path) -> dict[str, Any]:
    """Return what a run left, by name, but for its logs, figures and page.

    Reports without what passes (:data:`PASSING`), all without the name of the
    folder, all else as it is.
    """
    found: dict[str, Any] = {}
    trials = re.escape(bytes(folder.parents[1])) + rb'/\d+/run'
    for path in sorted(folder.rglob('*')):
        name = str(path.relative_to(folder))
        if path.is_dir() or name[0].isdigit():
            continue
        if path.suffix in ('.png', '.html'):
            continue
        found[name] = re.sub(trials, b'', path.read_bytes())
        if path.suffix == '.json':
            with suppress(ValueError):  # Then it is damaged.
                found[name] = json.loads(found[name], object_hook=lasting)
    return found


def lasting(values: dict[str, Any]) -> dict[str, Any]:
    """Return what does not pass."""
    return {k: v for k, v in values.items() if k not in PASSING}
