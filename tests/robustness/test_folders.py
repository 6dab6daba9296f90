"""Folders of runs: locked, swept, full, gone, killed at any moment."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mmrazor_brecq.checkpoint import (
    explain_write_errors,
    locked,
    read_checkpoint,
    remove_folder,
    remove_leftovers,
    save_json,
    save_tensors,
    write_kept,
    write_whole,
)
from mmrazor_brecq.config.read import read_file
from mmrazor_brecq.engine import ptq_loop
from mmrazor_brecq.engine.launch import ptq
from mmrazor_brecq.engine.mistakes import construction
from mmrazor_brecq.engine.progress import Progress
from mmrazor_brecq.engine.results import finished_metrics, one_run
from mmrazor_brecq.engine.sensitivity_run import SensitivityFile
from mmrazor_brecq.reconstruction import UnitReport

from ..engine import conftest as demo_runs

demo, quick, FLOAT = demo_runs.demo, demo_runs.quick, demo_runs.FLOAT

HOLDER = """
import sys, time
from mmrazor_brecq.checkpoint import locked
with locked(sys.argv[1], 'wait'):
    print('held', flush=True)
    {then}
"""


def holder(path, then='time.sleep(600)'):
    """Another process that holds a lock."""
    process = subprocess.Popen(
        [sys.executable, '-c', HOLDER.format(then=then), str(path)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == 'held\n'
    return process


def test_a_lock_is_refused_with_the_process_and_host_that_hold_it(tmp_path):
    path = tmp_path / 'run.lock'
    process = holder(path)
    try:
        with pytest.raises(ValueError, match='wait for it') as caught:
            with locked(str(path), 'wait for it'):
                raise AssertionError
        said = str(caught.value)
        assert f'process {process.pid} on {socket.gethostname()!r}' in said
    finally:
        process.kill()
        process.wait()
    # The process is gone, and so is what it held; its file is not.
    assert path.exists()
    with locked(str(path), 'wait'):
        assert json.loads(path.read_text())['pid'] == os.getpid()
    assert not path.exists()


def test_children_of_a_killed_process_hold_no_lock(tmp_path):
    path = tmp_path / 'run.lock'
    process = holder(
        path, 'import os; os.fork() and print("x", flush=True); time.sleep(9)'
    )
    process.stdout.readline()
    process.kill()
    process.wait()
    with locked(str(path), 'wait'):
        pass


def test_a_process_holds_a_lock_once(tmp_path):
    path = str(tmp_path / 'run.lock')
    with locked(path, 'wait'):
        with pytest.raises(ValueError, match=f'process {os.getpid()}'):
            with locked(path, 'wait'):
                raise AssertionError
        # The refusal did not drop it.
        other = subprocess.run(
            [sys.executable, '-c', HOLDER.format(then=''), path],
            stderr=subprocess.PIPE,
            text=True,
        )
        assert 'is in use by' in other.stderr
    with pytest.raises(RuntimeError), locked(path, 'wait'):
        raise RuntimeError
    with locked(path, 'wait'):
        pass


@pytest.mark.parametrize(
    'content', ['', '{', '[]', '{"pid": "x"}', 'x' * 9999, '{"pid": 1}']
)
def test_what_lies_in_a_lock_that_nobody_holds_is_of_no_account(
    tmp_path, content
):
    path = tmp_path / 'run.lock'
    path.write_text(content)
    with locked(str(path), 'wait'):
        assert json.loads(path.read_text())['pid'] == os.getpid()


def test_of_many_processes_one_gets_the_lock(tmp_path):
    path, log = tmp_path / 'run.lock', tmp_path / 'log'
    then = 'open({!r}, "a").write("in "); time.sleep(0.02); {}'.format(
        str(log), f'open({str(log)!r}, "a").write("out ")'
    )
    code = 'import time\nfor _ in range(30):\n try:\n' + textwrap.indent(
        HOLDER.format(then=then), '  '
    ) + ' except ValueError: time.sleep(0.001)\n'  # fmt: skip
    runs = [
        subprocess.Popen(
            [sys.executable, '-c', code, str(path)], stdout=subprocess.DEVNULL
        )
        for _ in range(3)
    ]
    assert [run.wait() for run in runs] == [0] * 3
    words = log.read_text().split()
    assert words == ['in', 'out'] * (len(words) // 2)
    assert not path.exists()


def dead_process():
    process = subprocess.Popen([sys.executable, '-c', ''])
    process.wait()
    return process.pid


def test_what_killed_runs_left_is_swept(tmp_path):
    dead, alive = dead_process(), os.getpid()
    progress = tmp_path / 'progress'
    progress.mkdir()
    gone = [
        tmp_path / f'quantized.pth.{dead}.tmp',
        tmp_path / f'quantized.safetensors.{dead}.tmp',
        tmp_path / f'report.json.{dead}.tmp',
        progress / f'run.json.{dead}.tmp',
        progress / f'0003.pth.{dead}.tmp',
    ]
    stays = [
        tmp_path / f'quantized.pth.{alive}.tmp',
        tmp_path / f'mine.{dead}.tmp',
        tmp_path / 'quantized.pth.tmp',
        tmp_path / f'quantized.pth.{dead}.tmp.pth',
        progress / 'run.json',
    ]
    for path in gone + stays:
        path.write_text('')
    folder = tmp_path / f'progress.{dead}.tmp'
    folder.mkdir()
    (folder / '0000.pth').write_text('')
    remove_leftovers(str(tmp_path))
    assert not any(path.exists() for path in [*gone, folder])
    assert all(path.exists() for path in stays)


def failing(monkeypatch, number, after=0, call='fsync'):
    """Lets a call of the system fail from its n-th time on."""
    count, real = [0], getattr(os, call)

    def fail(*args, **kwargs):
        count[0] += 1
        if count[0] > after:
            raise OSError(number, os.strerror(number))
        return real(*args, **kwargs)

    monkeypatch.setattr(os, call, fail)


@pytest.mark.parametrize('call', ['fsync', 'replace', 'makedirs'])
@pytest.mark.parametrize('number', [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_write_that_fails_leaves_what_was_there(
    tmp_path, monkeypatch, call, number
):
    path = tmp_path / 'quantized.pth'
    save_tensors(dict(x=torch.ones(2)), str(path))
    before = path.read_bytes()
    failing(monkeypatch, number, call=call)
    for write in (
        lambda: save_tensors(dict(x=torch.zeros(2)), str(path)),
        lambda: write_whole(str(path), 'x'),
        lambda: save_json({}, str(path)),
    ):
        with pytest.raises(OSError, match='Cannot write .*quantized.pth'):
            write()
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ['quantized.pth']


def test_what_is_written_is_on_the_disk_with_its_name(tmp_path, monkeypatch):
    synced, real = [], os.fsync

    def note(descriptor):
        synced.append(os.readlink(f'/proc/self/fd/{descriptor}'))
        real(descriptor)

    monkeypatch.setattr(os, 'fsync', note)
    path = tmp_path / 'a.json'
    write_whole(str(path), 'x')
    assert synced == [f'{path}.{os.getpid()}.tmp', str(tmp_path)]


@pytest.mark.skipif(os.geteuid() != 0, reason='only root may mount')
def test_a_disk_that_is_really_full(tmp_path):
    if subprocess.run(
        ['mount', '-t', 'tmpfs', '-o', 'size=64k', 'none', str(tmp_path)],
        capture_output=True,
    ).returncode:
        pytest.skip('may not mount')
    try:
        path = tmp_path / 'a.pth'
        save_tensors(torch.ones(4), str(path))
        before = path.read_bytes()
        with pytest.raises(OSError, match=r'the disk is full; again'):
            with explain_write_errors(str(tmp_path), 'again'):
                save_tensors(torch.ones(2**20), str(path))
        assert path.read_bytes() == before
        assert os.listdir(tmp_path) == ['a.pth']
    finally:
        subprocess.run(['umount', str(tmp_path)], check=True)


@pytest.mark.parametrize('number', [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_config_that_cannot_be_copied_names_the_temporary_folder(
    tmp_path, monkeypatch, number
):
    """mmengine reads a copy of it."""
    path = tmp_path / 'config.py'
    path.write_text('x = 1')

    def fail(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(tempfile, 'NamedTemporaryFile', fail)
    words = f'config.py.*{tempfile.gettempdir()}.*no room left.*TMPDIR'
    with pytest.raises(OSError, match=words):
        read_file(str(path))


def test_other_errors_are_left_alone(tmp_path):
    with pytest.raises(FileNotFoundError, match='No such file.*elsewhere'):
        with explain_write_errors(str(tmp_path), 'again'):
            open('/elsewhere/x')
    with pytest.raises(OSError, match='it was removed; again'):
        with explain_write_errors(str(tmp_path / 'gone'), 'again'):
            open(tmp_path / 'gone' / 'x')


class Killed(BaseException):
    """Ends a run as SIGKILL would, but for its lock."""


def killed_after(left, call, *args, **kwargs):
    """Do something, unless none of the calls is left."""
    if not left[0]:
        raise Killed
    left[0] -= 1
    return call(*args, **kwargs)


def test_a_folder_is_whole_or_gone(tmp_path, monkeypatch):
    """Killed after every call by which it is removed."""
    for after in range(6):
        folder = tmp_path / f'{after}' / 'progress'
        folder.mkdir(parents=True)
        for name in ('run.json', '0000.pth', '0001.pth'):
            (folder / name).write_text('')

        with monkeypatch.context() as patch:
            count = [after]
            for call in ('rename', 'unlink', 'rmdir'):
                real = getattr(os, call)

                patch.setattr(os, call, partial(killed_after, count, real))
            try:
                remove_folder(str(folder))
            except Killed:
                pass
        assert not folder.exists() or len(os.listdir(folder)) == 3


def state(folder):
    return read_checkpoint(str(folder / 'quantized.pth'))['state_dict']


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope='module')
def finished(tmp_path_factory, demo):
    folder = tmp_path_factory.mktemp('finished')
    return folder, ptq(demo_runs.quick_config(folder), FLOAT)


@pytest.mark.parametrize(
    'name',
    ['save_quantized', 'save_json', 'write', 'closing_table', 'remove_folder'],
)
@pytest.mark.parametrize('late', [False, True], ids=['before', 'after'])
def test_killed_at_the_end_a_run_goes_on_or_is_done(
    finished, quick, tmp_path, monkeypatch, name, late
):
    """Before and after each thing that a finished run does."""
    folder, metrics = finished
    place = ptq_loop
    if name == 'remove_folder':
        from mmrazor_brecq.engine import progress as place
    real = getattr(place, name)

    def killed(*args):
        if late:
            real(*args)
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(place, name, killed)
        ptq(quick(), FLOAT)
    run = tmp_path / 'run'
    found = ptq(quick(), FLOAT, resume=True)
    assert found == metrics
    assert same(state(run), state(folder))
    assert (
        json.loads((run / 'report.json').read_text())['quantized'] == metrics
    )
    # The configs differ by their experiment's name.
    names = {x.name for x in run.iterdir() if x.is_file()}
    assert {x for x in names if not x.endswith('.py')} == {
        'quantized.pth',
        'report.json',
        'report.html',
    }
    assert not (run / 'progress').exists()
    if (
        name in ('closing_table', 'remove_folder')
        or late
        and (name == 'save_json')
    ):
        log = '\n'.join(x.read_text() for x in run.glob('*/*.log'))
        assert 'is done: the quantized model is in' in log


def test_a_damaged_unit_is_done_anew_with_the_same_bits(
    finished, quick, tmp_path, monkeypatch
):
    folder, metrics = finished
    add_unit = Progress.add_unit

    def stop(self, *args):
        add_unit(self, *args)
        if len(self.reports) == 4:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Progress, 'add_unit', stop)
        ptq(quick(), FLOAT)
    file = tmp_path / 'run' / 'progress' / '0002.pth'
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    assert ptq(quick(), FLOAT, resume=True) == metrics
    assert same(state(tmp_path / 'run'), state(folder))
    log = '\n'.join(x.read_text() for x in tmp_path.glob('run/*/*.log'))
    assert '0002.pth is damaged' in log and 'Resumes after 2' in log


def copy_of(folder, run):
    """A folder of a run that is done, as if it had been there."""
    run.mkdir()
    for name in ('quantized.pth', 'report.json'):
        (run / name).write_bytes((folder / name).read_bytes())
    return run


@pytest.mark.parametrize(
    'name, harm',
    [
        ('quantized.pth', lambda data: data[:-1]),
        ('quantized.pth', lambda data: data.replace(data[500:501], b'!')),
        ('report.json', lambda data: data[:-1]),
        ('report.json', lambda data: b'[]'),
        ('report.json', lambda data: data.replace(b'0.', b'1.', 1)),
        ('report.json', lambda data: data.replace(b'"seed"', b'"sead"')),
        ('report.json', lambda data: b'\xff' + data),
        ('report.json', lambda data: b'[' * 99999),
    ],
)
def test_what_a_run_that_is_done_left_is_looked_at(
    finished, tmp_path, warnings_log, name, harm
):
    run = copy_of(finished[0], tmp_path / 'run')
    identity = json.loads((run / 'report.json').read_text())['identity']
    assert metrics_of(run, identity) == finished[1]
    assert not warnings_log
    (run / name).write_bytes(harm((run / name).read_bytes()))
    assert metrics_of(run, identity) is None
    (said,) = warnings_log
    assert re.search(f"{name}'? is (damaged|no whole checkpoint)", said)
    assert 'the run writes a new one' in said


def metrics_of(run, identity):
    """What is known of a run that is done, by its identity."""
    paths = str(run / 'quantized.pth'), str(run / 'report.json')
    return finished_metrics(*paths, identity)


def test_damage_of_a_run_that_is_done_is_kept_aside(finished, quick, tmp_path):
    folder, metrics = finished
    run = copy_of(folder, tmp_path / 'run')
    report = (run / 'report.json').read_text().replace('0.', '1.', 1)
    (run / 'report.json').write_text(report)
    assert ptq(quick(), FLOAT, resume=True) == metrics
    assert same(state(run), state(folder))
    assert (run / 'report.1.json').read_text() == report
    assert not (run / 'quantized.1.pth').exists()
    log = '\n'.join(x.read_text() for x in run.glob('*/*.log'))
    assert "report.json' is damaged (its content does not match" in log


def test_a_report_of_an_earlier_version_counts(finished, tmp_path):
    run = copy_of(finished[0], tmp_path / 'run')
    content = json.loads((run / 'report.json').read_text())
    del content['checksum']
    (run / 'report.json').write_text(json.dumps(content))
    assert metrics_of(run, content['identity']) == finished[1]


def test_a_text_that_says_the_same_stays(tmp_path):
    path = tmp_path / 'bits.py'
    for text in ('a', 'a', 'b', 'b', 'ä'):
        write_kept(str(path), text)
    assert path.read_text() == 'ä'
    assert (tmp_path / 'bits.1.py').read_text() == 'a'
    assert (tmp_path / 'bits.2.py').read_text() == 'b'
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize('root', ['.', 'run', 'run/images'])
def test_images_around_a_run_do_not_ask_for_its_own_files(
    quick, tmp_path, root
):
    """Where its folder is gone while it starts, it says that."""
    cfg = quick()
    loaders = cfg.test_dataloader, cfg.test_cfg.calibration.dataloader
    for loader in loaders:
        loader.dataset.data_root = str(tmp_path / root)
    with pytest.raises(FileNotFoundError, match='data_root=.* asks for'):
        with construction(cfg):
            open(tmp_path / root / 'images' / 'x')
    if root == 'run':
        return  # Nobody can tell whose file that is.
    run = tmp_path / 'run'
    with pytest.raises(OSError, match='in .* stopped: it was removed; again'):
        with explain_write_errors(str(run), 'again'), construction(cfg):
            open(run / '20200101_000000' / 'config.py', 'w')


@pytest.mark.parametrize(
    'number, word',
    [
        (errno.ENOSPC, 'the disk is full'),
        (errno.EROFS, 'is no longer writable'),
    ],
)
def test_a_disk_that_fails_midway_is_told_and_gone_on_with(
    finished, quick, tmp_path, monkeypatch, number, word
):
    folder, metrics = finished
    with monkeypatch.context() as patch:
        failing(patch, number, after=9)
        with pytest.raises(OSError, match=word) as caught:
            ptq(quick(), FLOAT)
    assert str(tmp_path / 'run') in str(caught.value)
    assert '--resume' in str(caught.value)
    assert not list(tmp_path.glob('run/**/*.tmp'))
    assert not list(tmp_path.glob('run/run.lock'))
    assert ptq(quick(), FLOAT, resume=True) == metrics
    assert same(state(tmp_path / 'run'), state(folder))


def test_a_search_killed_in_its_first_unit_leaves_nothing_aside(tmp_path):
    file = SensitivityFile(str(tmp_path / 'sensitivity.json'), dict(a='b'))
    first = Path(file.progress(4).folder)
    (first / '0000.pth').write_bytes(b'before run.json')
    progress = file.progress(4)
    assert not progress.reports
    progress.add_unit(UnitReport('a'), nn.Linear(1, 1))
    assert [r.name for r in file.progress(4).reports] == ['a']
    assert [path.name for path in tmp_path.iterdir()] == [first.name]
    file.remove_progress([4])
    assert not list(tmp_path.iterdir())


def test_a_folder_that_vanishes_midway_is_told(tmp_path):
    progress = Progress(str(tmp_path / 'run' / 'progress'), {}, False)
    progress.add_unit(UnitReport('a'), nn.Linear(1, 1))
    progress.remove()
    with pytest.raises(OSError, match='it was removed; again'):
        with explain_write_errors(str(tmp_path / 'run' / 'progress'), 'again'):
            progress.add_unit(UnitReport('b'), nn.Linear(1, 1))
    assert not (tmp_path / 'run' / 'progress').exists()


def test_a_result_is_whole_even_if_the_folder_vanished_just_before(
    finished, quick, tmp_path, monkeypatch
):
    real = ptq_loop.save_quantized

    def save(*args):
        shutil.rmtree(tmp_path / 'run')
        real(*args)

    monkeypatch.setattr(ptq_loop, 'save_quantized', save)
    cfg = quick()
    ptq(cfg, FLOAT)
    assert same(state(tmp_path / 'run'), state(finished[0]))
    names = {path.name for path in (tmp_path / 'run').iterdir()}
    config = Path(cfg.filename).name
    assert names == {config, 'quantized.pth', 'report.json', 'report.html'}


def test_two_runs_in_one_folder(quick, tmp_path):
    (tmp_path / 'run').mkdir()
    process = holder(tmp_path / 'run' / 'run.lock')
    try:
        for resume in (False, True):
            with pytest.raises(ValueError, match=f'process {process.pid} on'):
                ptq(quick(), FLOAT, resume=resume)
        assert os.listdir(tmp_path / 'run') == ['run.lock']
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def test_a_mistake_leaves_neither_folder_nor_lock(quick, tmp_path):
    with pytest.raises(FileNotFoundError):
        ptq(quick(), str(tmp_path / 'none.pth'))
    assert not (tmp_path / 'run').exists()


@pytest.mark.slow
def test_a_race_for_one_folder_has_one_winner(tmp_path):
    env = dict(os.environ, MMRAZOR_BRECQ_DEMO=str(demo_runs.ROOT / 'demo'))
    options = [f'{k}={v}' for k, v in demo_runs.QUICK.items()]
    command = [
        *(sys.executable, str(demo_runs.ROOT / 'tools/ptq.py')),
        *(demo_runs.CONFIG, FLOAT, '--work-dir', str(tmp_path / 'run')),
        *('--cfg-options', *options),
    ]
    runs = []
    for _ in range(2):
        runs.append(
            subprocess.Popen(
                command, env=env, stderr=subprocess.PIPE, text=True
            )
        )
        time.sleep(0.5)
    said = [run.communicate()[1] for run in runs]
    assert sorted(run.returncode for run in runs) == [0, 1]
    loser = said[[run.returncode for run in runs].index(1)]
    assert 'is in use by process' in loser and 'Traceback' not in loser


@pytest.mark.parametrize(
    ('launcher', 'variable'),
    [
        ('pytorch', 'RANK'),
        ('slurm', 'SLURM_PROCID'),
        ('mpi', 'OMPI_COMM_WORLD_RANK'),
    ],
)
def test_processes_of_one_run_share_its_lock(
    tmp_path, monkeypatch, launcher, variable
):
    cfg = SimpleNamespace(work_dir=str(tmp_path / 'run'), launcher=launcher)
    monkeypatch.setenv(variable, '0')
    with one_run(cfg, 'again'):
        monkeypatch.setenv(variable, '1')
        with one_run(cfg, 'again'):
            pass
        assert (tmp_path / 'run' / 'run.lock').exists()
        monkeypatch.setenv(variable, '0')
        with pytest.raises(ValueError, match='is in use by'):
            with one_run(cfg, 'again'):
                raise AssertionError
    assert not (tmp_path / 'run').exists()
