"""Pipes in the place of files: whoever opens one waits for its other end."""

from __future__ import annotations

import os
import signal

import pytest

from mmrazor_brecq.checkpoint import read_checkpoint, read_quantized
from mmrazor_brecq.config.read import find_config
from mmrazor_brecq.datasets.idx import read_idx
from mmrazor_brecq.engine.progress import Progress
from mmrazor_brecq.engine.results import made_by
from mmrazor_brecq.engine.sensitivity_run import SensitivityFile
from mmrazor_brecq.mixed_precision import LatencyTable


@pytest.fixture(autouse=True)
def impatience():
    """Nothing waits for more than a few seconds."""

    def fail(*args):
        raise AssertionError('It waited')

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


READERS = {
    'a.pth': read_checkpoint,
    'a.safetensors': read_checkpoint,
    'quantized.pth': read_quantized,
    'config.py': find_config,
    'config.yaml': find_config,
    'table.csv': LatencyTable,
    'table.json': LatencyTable,
    'sensitivity.json': lambda path: SensitivityFile(path, {}),
    'run.json': lambda path: Progress(os.path.dirname(path), {}, True),
    'images-idx3-ubyte': read_idx,
}


@pytest.mark.parametrize('name', READERS)
@pytest.mark.parametrize('linked', [False, True])
def test_a_pipe_is_refused_by_name(tmp_path, name, linked):
    path = tmp_path / name
    pipe = tmp_path / 'pipe' if linked else path
    os.mkfifo(pipe)
    if linked:
        path.symlink_to(pipe)
    with pytest.raises((ValueError, OSError), match=name):
        READERS[name](str(path))


@pytest.mark.parametrize('name', ['quantized.pth', 'report.json'])
def test_a_pipe_is_no_result(tmp_path, name):
    os.mkfifo(tmp_path / name)
    assert not made_by(str(tmp_path / name), {})
