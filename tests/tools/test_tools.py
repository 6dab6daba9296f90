"""Tools end with a status and a message, never with a trace."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / 'configs/brecq/resnet/brecq_resnet18_w4a4_fashion-mnist.py'


def call(monkeypatch, tool, *args):
    monkeypatch.setattr(sys, 'argv', [tool, *map(str, args)])
    with pytest.raises(SystemExit) as info:
        runpy.run_path(str(ROOT / 'tools' / tool), run_name='__main__')
    return info.value.code


@pytest.mark.parametrize(
    'tool', ['ptq.py', 'test.py', 'search_bits.py', 'export.py']
)
def test_errors_are_one_line(monkeypatch, capsys, tmp_path, tool):
    args = (tmp_path / 'none.py', 'none.pth', '--work-dir', tmp_path / 'run')
    assert call(monkeypatch, tool, *args) == 1
    error = capsys.readouterr().err
    assert 'No config at' in error and 'Traceback' not in error


def test_ctrl_c_says_how_to_go_on(monkeypatch, capsys, tmp_path):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr('mmrazor_brecq.engine.launch.ptq', interrupted)
    args = (CONFIG, 'none.pth', '--work-dir', tmp_path)
    assert call(monkeypatch, 'ptq.py', *args) == 130
    assert '--resume' in capsys.readouterr().err


def test_a_search_without_a_budget_says_so(monkeypatch, capsys, tmp_path):
    args = (CONFIG, 'none.pth', '--work-dir', tmp_path)
    assert call(monkeypatch, 'search_bits.py', *args) == 1
    assert '--budget or --equal-to' in capsys.readouterr().err


def test_a_table_of_another_kind_is_refused(monkeypatch, capsys, tmp_path):
    args = (CONFIG, '--out', tmp_path / 'a.txt', '--work-dir', tmp_path)
    assert call(monkeypatch, 'measure_latency.py', *args) == 1
    assert '.csv or .json' in capsys.readouterr().err


@pytest.mark.parametrize(
    'tool',
    [
        'ptq.py',
        'test.py',
        'train.py',
        'export.py',
        'search_bits.py',
        'measure_latency.py',
    ],
)
def test_help(monkeypatch, capsys, tool):
    assert call(monkeypatch, tool, '--help') == 0
    assert 'config' in capsys.readouterr().out


def test_a_missing_package_is_named_on_one_line(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    args = (CONFIG, 'none.pth', '--work-dir', tmp_path)
    assert call(monkeypatch, 'export.py', *args) == 1
    error = capsys.readouterr().err
    assert "pip install 'mmrazor_brecq[export]'" in error
    assert 'Traceback' not in error


def run(tool, *args):
    """A tool in a process of its own, as users have it."""
    done = subprocess.run(
        [sys.executable, ROOT / 'tools' / tool, *map(str, args)],
        capture_output=True,
        text=True,
        env=dict(
            os.environ,
            PYTHONPATH=str(ROOT),
            MMRAZOR_BRECQ_DEMO=str(ROOT / 'demo'),
        ),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


QUICK = (
    '--cfg-options',
    "model.reconstructor={'_delete_': True, 'type': 'NearestRounding'}",
    'test_cfg.calibration.num_images=24',
    'test_cfg.calibration.dataloader.batch_size=12',
    'test_dataloader.dataset.indices=64',
    "mixed_precision={'bits': [4, 8]}",
)


@pytest.mark.slow
def test_what_a_run_left_serves_all_that_comes_after(tmp_path):
    """Quantize, and then everything with the config that lies there."""
    weights = ROOT / 'demo/resnet18_fashion-mnist.pth'
    run('ptq.py', CONFIG, weights, '--work-dir', tmp_path, *QUICK)
    (config,) = tmp_path.glob('*.py')
    folder = '--work-dir', tmp_path
    quantized = tmp_path / 'quantized.pth'

    def left():
        return {
            path.name: path.read_bytes()
            for path in tmp_path.iterdir()
            if path.is_file()
        }

    before = left()
    for tool, *args in (
        ('test.py', config, quantized, *folder),
        ('test.py', config, quantized),
        ('test.py', config, quantized, *folder, '--cfg-options')
        + ('test_dataloader.dataset.indices=32',),
        ('export.py', config, quantized, '--images', 32, *folder),
        ('test.py', config, quantized, *folder),
        ('measure_latency.py', config, '--out', tmp_path / 'a.csv')
        + ('--template', *folder),
    ):
        run(tool, *args)
        after = left()
        assert {name: after.get(name) for name in before} == before, tool
    for more in ('--resume',), ():
        run('ptq.py', config, weights, *folder, *more)
        assert config.read_bytes() == before[config.name]
        assert (tmp_path / 'quantized.1.pth').exists()
        assert quantized.read_bytes() == before[quantized.name]
