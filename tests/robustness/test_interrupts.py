"""Ctrl-C at any moment: one line, status 130, and the run goes on."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from random import Random

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
        if tool == 'train':
            config = [ROOT / 'configs/float/resnet18_fashion-mnist.py']
        else:
            config = [ROOT / CONFIG, FLOAT]
        self.process = subprocess.Popen(
            [sys.executable, *start, *config, *options],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            # Jobs in the background of a shell ignore it from birth.
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
            env={
                **os.environ,
                'PYTHONPATH': str(ROOT),
                'TORCH_COMPILE_DISABLE': '1',
                **environment,
            },
        )

    def interrupt(self, times=1, pause=0.05, by=signal.SIGINT):
        for _ in range(times):
            if self.process.poll() is None:
                # All of the group get it, as from a terminal.
                os.killpg(self.process.pid, by)
            time.sleep(pause)

    def end(self):
        """Status and errors, once it has ended."""
        try:
            self.out, error = self.process.communicate(timeout=400)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        return self.process.returncode, error


def is_told(status, error):
    """Whether it says in one line how to go on, and nothing else."""
    told = re.findall('^Interrupted: .*', error, re.MULTILINE)
    odd = re.search('Traceback|Exception ignored|KeyboardInterrupt', error)
    assert status == 130 and len(told) == 1 and not odd, (status, error)
    return told[0]


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
        os.killpg(0, signal.{by})
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
    'renaming what is written': 'os:replace',
    'evaluating': 'mmengine.evaluator:Evaluator.evaluate',
    'learning': 'mmrazor_brecq.reconstruction.optimize:average_gradients',
    'writing a unit': 'mmrazor_brecq.engine.progress:Progress.add_unit',
    'writing the result': 'mmrazor_brecq.engine.ptq_loop:save_quantized',
    'clearing up': 'mmrazor_brecq.engine.progress:remove_folder',
}
FAST = ['reading the config', 'writing the config', 'learning', 'clearing up']
SLOW = pytest.mark.slow
#: From here on there is something to go on with.
BEGUN = list(PLACES).index('writing the config')


def interrupted_at(folder, name, times=1, by='SIGINT', options=()):
    """A run that is to be interrupted at a place."""
    code = AT.format(place=PLACES[name], times=times, by=by)
    return Run(folder, *options, '--cfg-options', *QUICK, code=code)


@pytest.fixture(scope='module')
def bits(tmp_path_factory):
    """What comes of a run that nobody interrupts."""
    folder = tmp_path_factory.mktemp('whole')
    run = Run(folder, '--cfg-options', *QUICK)
    assert run.end()[0] == 0
    return (folder / 'run/quantized.pth').read_bytes()


def check_whole(folder, but_names=False):
    """See that nothing is half written, or, by its name, in the way."""
    for path in folder.rglob('*.py'):
        compile(path.read_text(), str(path), 'exec')
    for path in folder.rglob('*.json'):
        if 'vis_data' not in path.parts:  # mmengine's own, line by line
            json.loads(path.read_text())
    assert but_names or not list(folder.rglob('*.tmp'))
    assert but_names or not list(folder.rglob('*.lock'))


@pytest.mark.parametrize(
    'names, times',
    [
        pytest.param(FAST, 3, id='few'),
        pytest.param(list(PLACES), 1, id='all', marks=SLOW),
    ],
)
def test_at_place_after_place_it_ends_with_the_same_bits(
    tmp_path, bits, names, times
):
    for name in names:
        options = ['--resume'] if name != names[0] else []
        run = interrupted_at(tmp_path, name, times, options=options)
        told = is_told(*run.end())
        begun = list(PLACES).index(name) >= BEGUN
        assert ('--resume' in told) == begun, (name, told)
        check_whole(tmp_path)
    again = Run(tmp_path, '--resume', '--cfg-options', *QUICK)
    assert again.end()[0] == 0
    assert (tmp_path / 'run/quantized.pth').read_bytes() == bits


@pytest.mark.parametrize(
    'names',
    [
        pytest.param(['renaming what is written'], id='few'),
        pytest.param(list(PLACES), id='all', marks=SLOW),
    ],
)
def test_a_scheduler_s_kill_leaves_no_half_file(tmp_path, bits, names):
    """SIGTERM ends a process where it is, so names ending in .tmp stay."""
    for name in names:
        run = interrupted_at(tmp_path, name, 1, 'SIGTERM', ['--resume'])
        assert run.end()[0] == -signal.SIGTERM
        check_whole(tmp_path, but_names=True)
    again = Run(tmp_path, '--resume', '--cfg-options', *QUICK)
    assert again.end()[0] == 0
    assert (tmp_path / 'run/quantized.pth').read_bytes() == bits
    check_whole(tmp_path)


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
    # The answer comes a moment after the import, when a folder may be there.
    check_whole(tmp_path)
    assert not list(tmp_path.rglob('quantized.pth'))


def test_an_import_that_never_ends_is_left(tmp_path):
    code = (
        'import os, runpy, signal, sys, time\n'
        'sys.argv = sys.argv[1:]\n'
        'class Finder:\n'
        '    def find_spec(self, name, path=None, target=None):\n'
        '        if name == "torch":\n'
        '            os.killpg(0, signal.SIGINT)\n'
        '            while True:\n'
        '                time.sleep(0.1)\n'
        'sys.meta_path.insert(0, Finder())\n'
        'runpy.run_path(sys.argv[0], run_name="__main__")\n'
    )
    run = Run(tmp_path, '--cfg-options', *QUICK, code=code)
    assert is_told(*run.end())


def test_a_tool_that_keeps_nothing_does_not_promise_to_go_on(tmp_path):
    place = PLACES['reading the config']
    for tool in ('test', 'export', 'search_bits'):
        code = AT.format(place=place, times=1, by='SIGINT')
        run = Run(tmp_path, code=code, tool=tool)
        assert is_told(*run.end()).endswith('give the same command again')


def test_what_a_finalizer_swallows_is_raised_again():
    """Python drops exceptions there, with a traceback."""
    code = (
        'import os, signal, sys, time\n'
        'sys.argv = [sys.argv[1]]\n'
        'from mmrazor_brecq import _interrupt\n'
        'class Held:\n'
        '    def __del__(self):\n'
        '        os.kill(os.getpid(), signal.SIGINT)\n'
        'try:\n'
        '    with _interrupt.working("later"):\n'
        '        held = Held()\n'
        '        del held\n'
        '        time.sleep(9)\n'
        'except KeyboardInterrupt:\n'
        '    _interrupt.print_hint()\n'
        '    sys.exit(130)\n'
    )
    result = subprocess.run(
        [sys.executable, '-c', code, str(ROOT / 'tools/ptq.py')],
        cwd=ROOT,
        capture_output=True,
        text=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    is_told(result.returncode, result.stderr)


@pytest.mark.parametrize(
    'context', ['spawn', pytest.param('forkserver', marks=SLOW)]
)
def test_processes_that_import_all_anew_leave_the_answer_to_the_first(
    tmp_path, context
):
    """As those of a data loader do where nothing can be forked."""
    loader = 'test_dataloader.multiprocessing_context'
    code = AT.format(place=PLACES['evaluating'], times=2, by='SIGINT')
    options = [*QUICK, f'{loader}={context}']
    run = Run(tmp_path, '--cfg-options', *options, code=code)
    assert '--resume' in is_told(*run.end())


def test_a_program_that_is_no_tool_keeps_its_own_answer(tmp_path):
    """And so do the processes that it starts."""
    script = tmp_path / 'own.py'
    script.write_text(
        'import multiprocessing, signal, mmrazor_brecq\n'
        'def check():\n'
        '    before = signal.default_int_handler\n'
        '    assert signal.getsignal(signal.SIGINT) is before\n'
        'if __name__ == "__main__":\n'
        '    check()\n'
        '    context = multiprocessing.get_context("spawn")\n'
        '    other = context.Process(target=check)\n'
        '    other.start()\n'
        '    other.join()\n'
        '    assert other.exitcode == 0\n'
    )
    subprocess.run(
        [sys.executable, script],
        check=True,
        env=dict(os.environ, PYTHONPATH=str(ROOT)),
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )


@pytest.mark.slow
@pytest.mark.parametrize('delay', [0.1, 2.7])
def test_at_moments_of_the_clock(tmp_path, delay):
    """Some of them while Python itself starts, which no one can answer."""
    options = '--cfg-options', *QUICK
    run = Run(tmp_path, *options)
    time.sleep(delay)
    done = run.process.poll() is not None
    run.interrupt(times=2)
    status, error = run.end()
    if not done and ('mmrazor_brecq' in error or delay >= 1):
        is_told(status, error)
    again = Run(tmp_path, '--resume', *options)
    assert again.end()[0] == 0


@pytest.mark.slow
def test_at_random_again_and_again_it_ends_with_the_same_bits(tmp_path):
    """While kernels are compiled, too, which are kept on the disk."""
    random = Random(0)
    # They round otherwise than the plain functions of the other tests do.
    kernels = dict(
        TORCH_COMPILE_DISABLE='0', TORCHINDUCTOR_CACHE_DIR=str(tmp_path / 'k')
    )
    for _ in range(2):
        by = random.choice([signal.SIGINT, signal.SIGINT, signal.SIGTERM])
        run = Run(tmp_path, '--resume', '--cfg-options', *QUICK, **kernels)
        time.sleep(random.uniform(1, 40))
        done = run.process.poll() is not None
        run.interrupt(random.choice([1, 2, 3]), random.uniform(0, 1.5), by)
        status, error = run.end()
        if by == signal.SIGINT and not done and status:
            is_told(status, error)
    last = Run(tmp_path, '--resume', '--cfg-options', *QUICK, **kernels)
    assert last.end()[0] == 0
    check_whole(tmp_path / 'run')
    whole = Run(tmp_path / 'whole', '--cfg-options', *QUICK, **kernels)
    assert whole.end()[0] == 0
    found, expected = (
        (folder / 'run/quantized.pth').read_bytes()
        for folder in (tmp_path, tmp_path / 'whole')
    )
    assert found == expected


@pytest.mark.slow
@pytest.mark.parametrize('epoch', [1, 2, 3])
def test_a_training_goes_on_from_a_whole_checkpoint(tmp_path, epoch):
    """mmengine removes old ones before it has written the next."""
    place = 'mmengine.fileio.backends.local_backend:LocalBackend.put'
    demo = ROOT / 'demo/fashion_mnist'
    options = [
        '--cfg-options',
        'train_cfg.max_epochs=3',
        'train_dataloader.dataset.indices=64',
        f'train_dataloader.dataset.data_root={demo}',
        'train_dataloader.dataset.images=calib-images-idx3-ubyte.gz',
        'train_dataloader.dataset.labels=calib-labels-idx1-ubyte.gz',
        'val_dataloader.dataset.indices=64',
        f'val_dataloader.dataset.data_root={demo}',
    ]
    halved = AT.replace(
        '    setattr(holder, attribute, before)\n',
        '    interrupted.calls = getattr(interrupted, "calls", 0) + 1\n'
        f'    if interrupted.calls < {epoch}:\n'
        '        return before(*args, **kwargs)\n'
        '    with open(args[-1], "wb") as file:\n'
        '        file.write(b"half")\n',
    ).format(place=place, times=1, by='SIGINT')
    run = Run(tmp_path, *options, code=halved, tool='train')
    assert '--resume' in is_told(*run.end())
    again = Run(tmp_path, '--resume', *options, tool='train')
    status, error = again.end()
    assert status == 0, error
    assert (tmp_path / 'run/float.pth').exists()
