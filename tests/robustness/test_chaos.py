"""The benchmark that harms runs notices what harm does."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def chaos_runs(monkeypatch):
    """Its modules lie beside the script."""
    monkeypatch.syspath_prepend(str(ROOT / 'benchmarks'))
    return pytest.importorskip('chaos_runs')


@pytest.fixture
def chaos_trial(chaos_runs):
    return pytest.importorskip('chaos_trial')


def write_three(folder):
    for name in 'abc':
        (folder / name).write_text(name)
        (folder / name).rename(folder / f'{name}.txt')


@pytest.mark.parametrize('step', range(7))
def test_a_process_is_killed_before_a_change_of_its_folder(
    chaos_runs, chaos_trial, tmp_path, step
):
    folder = tmp_path / 'run'
    folder.mkdir()

    def work():
        chaos_runs.watch(folder, chaos_trial.at(step, chaos_trial.die))
        (tmp_path / 'elsewhere').write_text('')
        write_three(folder)

    process = multiprocessing.get_context('fork').Process(target=work)
    process.start()
    process.join(60)
    assert process.exitcode == (-9 if step < 6 else 0)
    changes = ['a', 'a.txt', 'b', 'b.txt', 'c', 'c.txt'][:step]
    expected = {x for x in changes if f'{x}.txt' not in changes}
    assert {path.name for path in folder.iterdir()} == expected


def test_what_two_runs_left_is_compared(chaos_runs, tmp_path):
    folders = [tmp_path / name / 'run' for name in ('00001', '00002')]
    for number, folder in enumerate(folders):
        (folder / '20260101_000000').mkdir(parents=True)
        (folder / '20260101_000000' / 'log').write_text(f'{number}')
        report = dict(top1=1.0, seconds=number, units=[dict(seconds=number)])
        (folder / 'report.json').write_text(json.dumps(report))
        (folder / 'config.py').write_text(f'work_dir = {str(folder)!r}')
        (folder / 'quantized.pth').write_bytes(b'same')
    one, two = map(chaos_runs.content, folders)
    assert one == two
    assert set(one) == {'report.json', 'config.py', 'quantized.pth'}
    harmed = dict(
        {'quantized.pth': '"sane"', 'report.json': '{"top1": 2.0}'},
        **{'config.py': 'x = 1', 'quantized.pth.1234.tmp': ''},
    )
    for name, text in harmed.items():
        path = folders[1] / name
        before = path.read_bytes() if path.exists() else None
        path.write_text(text)
        assert chaos_runs.content(folders[1]) != one
        if before is not None:
            path.write_bytes(before)
        else:
            path.unlink()


def test_what_a_run_moved_aside_is_forgotten_and_nothing_else(
    chaos_trial, tmp_path
):
    aside = 'quantized.1.pth', 'progress.1', 'bits.10.py'
    stays = 'quantized.pth', 'quantized.pth.77.tmp', '20260101_000000'
    for name in (*aside, *stays):
        (tmp_path / name).write_text('')
    chaos_trial.forget_kept(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(stays)


def chaos(folder, *options, before=''):
    """Run the script, after some lines of code."""
    code = '\n'.join(
        [
            'import runpy, sys',
            f'sys.path.insert(0, {str(ROOT / "benchmarks")!r})',
            before,
            f'runpy.run_path({str(ROOT / "benchmarks/chaos.py")!r}, '
            "run_name='__main__')",
        ]
    )
    done = subprocess.run(
        [sys.executable, '-c', code, *options, '--work-dir', str(folder)],
        env=dict(os.environ, PYTHONPATH=str(ROOT)),
        stdout=subprocess.PIPE,
        text=True,
    )
    return done, json.loads((folder / 'chaos.json').read_text())


@pytest.mark.slow
def test_a_round_of_harm_does_no_harm(tmp_path):
    done, found = chaos(tmp_path, '--rounds', '1', '--runs', 'default')
    assert done.returncode == 0, done.stdout
    rows = {row['harm']: row for row in found['rows']}
    assert set(rows) == {
        *('kill', 'fill', 'vanish', 'race', 'flip_run', 'flip_checkpoint')
    }
    assert rows['kill']['equal'] == 1
    assert rows['flip_checkpoint']['trials'] == 10
    assert not found['wrong']


UNCHECKED = """
from mmrazor_brecq.engine.progress import Progress
Progress._drop_damaged = lambda self, unchecked: None
"""
FORGETFUL = """
from mmrazor_brecq.engine.progress import Progress
Progress.units = lambda self, part: {}
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ('harm', 'before'), [('flip_run', UNCHECKED), ('kill', FORGETFUL)]
)
def test_a_run_that_is_less_careful_shows(tmp_path, harm, before):
    done, found = chaos(
        *(tmp_path, '--rounds', '6', '--runs', 'default', '--harms', harm),
        before=before,
    )
    assert done.returncode == 1, done.stdout
    total = found['rows'][-1]
    assert total['silent'] + total['wrong']
