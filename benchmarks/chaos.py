"""Kills runs, fills their disk, removes, damages and races them.

    python benchmarks/chaos.py --minutes 10
    python benchmarks/chaos.py --rounds 50

Every trial is a run of a toy network that something befalls at random, and
that goes on afterwards as its message says. What it ends with is compared, bit
by bit, with a run that was left alone; damage has to be told of, refused, or
without any effect on what is read. In a round each harm befalls each run. A
table is printed and written as JSON beside the folders of all trials that went
wrong; if there are any, or damage was silent, the exit status is 1.
"""

from __future__ import annotations

import os

# Forks inherit no threads: let there be none.
os.environ.update(OMP_NUM_THREADS='1', TORCHINDUCTOR_COMPILE_THREADS='1')

import argparse  # noqa: E402
import json  # noqa: E402
import logging  # noqa: E402
import random  # noqa: E402
import shutil  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
from collections import Counter  # noqa: E402
from pathlib import Path  # noqa: E402

import torch  # noqa: E402
from chaos_harms import HARMS  # noqa: E402
from chaos_runs import KINDS, Runs  # noqa: E402
from chaos_trial import VERDICTS, Trial, Wrong  # noqa: E402
from mmengine.logging import MMLogger  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Column, Table  # noqa: E402

COLUMNS = 'trials', *VERDICTS, 'wrong'


class Outcomes:
    """Counts verdicts, and keeps what went wrong."""

    def __init__(self) -> None:
        self.counts: dict[tuple[str, str], Counter] = {}
        self.wrong: list[dict[str, str]] = []

    def add(self, name: str, trial: Trial) -> None:
        """Let a harm befall a run."""
        count = self.counts.setdefault((name, trial.kind), Counter())
        before = count.copy()
        try:
            for verdict in HARMS[name](trial):
                count.update(['trials', verdict])
        except Wrong as error:
            count.update(['trials', 'wrong'])
            self.wrong.append(
                dict(
                    harm=name,
                    run=trial.kind,
                    what=str(error),
                    folder=str(trial.folder.parent),
                )
            )
            print(f'{name}, {trial.kind}: {error}', flush=True)
        if (count - before).keys() & {'wrong', 'silent'}:
            print(f'See {trial.folder.parent}', flush=True)
        else:
            shutil.rmtree(trial.folder.parent, ignore_errors=True)

    @property
    def rows(self) -> list[dict]:
        """Counts of each harm and run, and of all runs of a harm."""
        sums: dict[tuple[str, str], Counter] = {}
        for (harm, _), count in self.counts.items():
            sums.setdefault((harm, 'all'), Counter()).update(count)
        every = {**self.counts, **sums}
        return [
            dict(harm=harm, run=run, **{c: count[c] for c in COLUMNS})
            for (harm, run), count in sorted(
                every.items(), key=lambda x: (x[0][0], x[0][1] == 'all')
            )
        ]

    @property
    def good(self) -> bool:
        """Whether nothing went wrong and no damage was silent."""
        return not any(x['wrong'] + x['silent'] for x in self.rows)


def main() -> int:
    """Let things happen, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument('--minutes', type=float, default=10)
    length.add_argument('--rounds', type=int)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--runs', nargs='+', choices=KINDS, default=[*KINDS])
    parser.add_argument('--harms', nargs='+', choices=HARMS, default=[*HARMS])
    parser.add_argument('--work-dir', default='work_dirs/chaos')
    args = parser.parse_args()

    torch.set_num_threads(1)
    MMLogger.get_current_instance().setLevel(logging.CRITICAL)
    folder = Path(args.work_dir).resolve()
    shutil.rmtree(folder / 'trials', ignore_errors=True)
    start, rounds = time.monotonic(), 0
    runs, outcomes = Runs(folder / 'trials'), Outcomes()

    def go_on() -> bool:
        if args.rounds is not None:
            return rounds < args.rounds
        return time.monotonic() - start < 60 * args.minutes

    while go_on():
        chance = random.Random(f'{args.seed}-{rounds}')
        for kind in args.runs:
            for name in args.harms:
                if (name, kind) != ('flip_checkpoint', 'search'):
                    outcomes.add(name, Trial(runs, kind, chance))
        rounds += 1
        minutes = (time.monotonic() - start) / 60
        print(f'{rounds} rounds, {minutes:.1f} minutes', flush=True)
    report = dict(
        rounds=rounds,
        minutes=round((time.monotonic() - start) / 60, 2),
        seed=args.seed,
        torch=torch.__version__,
        rows=outcomes.rows,
        wrong=outcomes.wrong,
    )
    (folder / 'chaos.json').write_text(json.dumps(report, indent=2))
    table = Table(
        'harm', 'run', *(Column(x, justify='right') for x in COLUMNS)
    )
    for row in outcomes.rows:
        table.add_row(*map(str, row.values()), end_section=row['run'] == 'all')
    Console(width=100).print(table)
    return not outcomes.good


if __name__ == '__main__':
    sys.exit(main())
