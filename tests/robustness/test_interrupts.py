"""Ctrl-C at any moment: one line, status 130, and the run goes on."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONFIG = 'configs/brecq/resnet/brecq_resnet18_w4a4_fashion-mnist.py'
FLOAT = ROOT / 'demo/resnet18_fashion-mnist.pth'
QUICK = [
    'model.reconstructor.iterations=2',
    'model.reconstructor.batch_size=8',
    'model.reconstructor.autocast=None',
    'test_cfg.calibration.num_images=24',
    'test_cfg.calibration.dataloader.batch_size=12',
    'test_cfg.calibration.dataloader.num_workers=2',
    'test_dataloader.num_workers=2',
    'test_dataloader.batch_size=32',
    'test_dataloader.dataset.indices=64',
]


class Run:
    """A tool in a process group of its own, as a terminal has it."""

    def __init__(self, folder, *args, tool='ptq', code=None, **environment):
        self.folder = folder
        script = str(ROOT / 'tools' / f'{tool}.py')
        # `code` runs before the tool, in its process.
        start = [script] if code is None else ['-c', code, script]
        options = ['--work-dir', folder / 'run', *args]
        self.process = subprocess.Popen(
            [sys.executable, *start, ROOT / CONFIG, FLOAT, *options],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env=dict(
                os.environ,
                PYTHONPATH=str(ROOT),
                TORCH_COMPILE_DISABLE='1',
                **environment,
            ),
        )

    def interrupt(self, times=1, pause=0.05):
        for _ in range(times):
            if self.process.poll() is None:
                # All of the group get it, as from a terminal.
                os.killpg(self.process.pid, signal.SIGINT)
            time.sleep(pause)

    def end(self):
        """Status and errors, once it has ended."""
        try:
            self.out, error = self.process.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        return self.process.returncode, error

    def until(self, there, seconds=120):
        end = time.monotonic() + seconds
        while not there():
            assert self.process.poll() is None, self.end()
            assert time.monotonic() < end
            time.sleep(0.01)


def is_told(status, error):
    """Whether it says in one line how to go on, and nothing else."""
    lines = [line for line in error.splitlines() if line.strip()]
    told = [line for line in lines if line.startswith('Interrupted: ')]
    return status == 130 and len(told) == 1 and 'Traceback' not in error


#: Runs a tool, and interrupts it where one of its functions is called.
AT = """
import importlib, os, runpy, signal, sys
sys.argv = sys.argv[1:]
place, name = {place!r}.split(':')
owner, _, attribute = name.rpartition('.')
module = importlib.import_module(place)
holder = getattr(module, owner) if owner else module
before = getattr(holder, attribute)
def interrupted(*args, **kwargs):
    setattr(holder, attribute, before)
    for _ in range({times}):
        os.killpg(0, signal.SIGINT)
    return before(*args, **kwargs)
setattr(holder, attribute, interrupted)
runpy.run_path(sys.argv[0], run_name='__main__')
"""
PLACES = {
    'reading the config': 'mmengine.config:Config._merge_a_into_b',
    'building the model': 'mmengine.registry:build_from_cfg',
    'writing the log': 'mmengine.runner:Runner._log_env',
    'reading the checkpoint': 'torch:load',
    'collecting images': 'mmrazor_brecq.engine.calibration:_preprocess',
    'writing the config': 'mmrazor_brecq.engine.runners:config_text',
    'evaluating': 'mmengine.evaluator:Evaluator.evaluate',
    'learning': 'mmrazor_brecq.reconstruction.optimize:average_gradients',
    'writing a unit': 'mmrazor_brecq.engine.progress:Progress.add_unit',
    'writing the result': 'mmrazor_brecq.engine.ptq_loop:save_quantized',
}
FAST = ['reading the config', 'writing the config', 'learning']


def place(name, times):
    marks = () if name in FAST and times == 3 else pytest.mark.slow
    return pytest.param(PLACES[name], times, id=name, marks=marks)


@pytest.mark.parametrize(
    'where, times', [place(name, times) for name in PLACES for times in (1, 3)]
)
def test_at_any_place_it_is_told_and_the_run_goes_on(tmp_path, where, times):
    code = AT.format(place=where, times=times)
    options = '--cfg-options', *QUICK
    run = Run(tmp_path, *options, code=code)
    assert is_told(*run.end())
    for path in tmp_path.rglob('*.py'):
        compile(path.read_text(), str(path), 'exec')  # None is half written.
    assert not list(tmp_path.rglob('*.tmp'))
    assert not list(tmp_path.rglob('*.lock'))
    again = Run(tmp_path, '--resume', *options)
    assert again.end()[0] == 0
    assert (tmp_path / 'run/quantized.pth').exists()


def test_before_anything_is_imported(tmp_path):
    """As soon as the package's first module runs."""
    code = (
        'import os, runpy, signal, sys\n'
        'sys.argv = sys.argv[1:]\n'
        'class Finder:\n'
        '    def find_spec(self, name, path=None, target=None):\n'
        '        if name == "mmengine":\n'
        '            os.killpg(0, signal.SIGINT)\n'
        'sys.meta_path.insert(0, Finder())\n'
        'runpy.run_path(sys.argv[0], run_name="__main__")\n'
    )
    run = Run(tmp_path, code=code)
    assert is_told(*run.end())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('name', ['torch', 'torch.nn', 'mmcls'])
def test_while_something_is_imported(tmp_path, name):
    """Code that imports may swallow an exception; here nothing is raised."""
    code = (
        'import os, runpy, signal, sys\n'
        'sys.argv = sys.argv[1:]\n'
        'class Finder:\n'
        '    def find_spec(self, name, path=None, target=None):\n'
        f'        if name == {name!r}:\n'
        '            sys.meta_path.remove(self)\n'
        '            try:\n'
        '                os.killpg(0, signal.SIGINT)\n'
        '            except BaseException:\n'
        '                pass\n'
        'sys.meta_path.insert(0, Finder())\n'
        'runpy.run_path(sys.argv[0], run_name="__main__")\n'
    )
    run = Run(tmp_path, '--cfg-options', *QUICK, code=code)
    assert is_told(*run.end())


def test_all_tools_are_told_apart(tmp_path):
    """A tool that keeps nothing does not promise to go on."""
    code = AT.format(place=PLACES['reading the config'], times=1)
    lines = {}
    for tool in ('ptq', 'search_bits', 'test'):
        run = Run(tmp_path, code=code, tool=tool)
        status, error = run.end()
        assert is_told(status, error)
        (lines[tool],) = re.findall('Interrupted: .*', error)
    assert '--resume' in lines['ptq']
    assert 'goes on after the last finished unit' in lines['search_bits']
    assert 'again' in lines['test']


def test_a_program_that_is_no_tool_keeps_its_own_answer():
    code = (
        'import signal, mmrazor_brecq\n'
        'assert signal.getsignal(2) is signal.default_int_handler\n'
    )
    assert (
        subprocess.run([sys.executable, '-c', code], cwd=ROOT).returncode == 0
    )


@pytest.mark.slow
@pytest.mark.parametrize('delay', [0.1 * 1.4**i for i in range(14)])
def test_at_moments_of_the_clock(tmp_path, delay):
    """Some of them while Python itself starts, which no one can answer."""
    options = '--cfg-options', *QUICK
    run = Run(tmp_path, *options)
    time.sleep(delay)
    done = run.process.poll() is not None
    run.interrupt(times=2)
    status, error = run.end()
    assert (
        done
        or is_told(status, error)
        or ('mmrazor_brecq' not in error and delay < 1)
    )
    again = Run(tmp_path, '--resume', *options)
    assert again.end()[0] == 0


@pytest.mark.slow
def test_interrupted_again_and_again_ends_with_the_same_bits(tmp_path):
    options = '--cfg-options', *QUICK
    whole = Run(tmp_path / 'whole', *options)
    assert whole.end()[0] == 0
    other = tmp_path / 'other'
    progress = other / 'run/progress/run.json'
    for units in (1, 3, 6):
        run = Run(other, '--resume', *options)

        def reached(units=units):
            try:
                return len(json.loads(progress.read_text())['units']) >= units
            except (OSError, ValueError):
                return False

        run.until(reached)
        run.interrupt(times=2)
        assert is_told(*run.end())
    assert Run(other, '--resume', *options).end()[0] == 0
    files = [
        folder / 'run/quantized.pth' for folder in (tmp_path / 'whole', other)
    ]
    assert files[0].read_bytes() == files[1].read_bytes()
