"""Tools end with a status and a message, never with a trace."""

from __future__ import annotations

import argparse
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from mmrazor_brecq import _interrupt
from mmrazor_brecq.version import __version__

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / 'configs/brecq/resnet/brecq_resnet18_w4a4_fashion-mnist.py'
FLOAT = ROOT / 'demo/resnet18_fashion-mnist.pth'
TOOLS = [
    'ptq.py',
    'test.py',
    'train.py',
    'export.py',
    'search_bits.py',
    'analyze.py',
    'measure_latency.py',
]


@pytest.fixture(autouse=True)
def demo(monkeypatch):
    """The configs' images lie in `demo` of the current folder."""
    monkeypatch.delenv('MMRAZOR_BRECQ_DEMO', raising=False)
    monkeypatch.chdir(ROOT)


def call(monkeypatch, tool, *args):
    monkeypatch.setattr(sys, 'argv', [tool, *map(str, args)])
    with pytest.raises(SystemExit) as info:
        runpy.run_path(str(ROOT / 'tools' / tool), run_name='__main__')
    return info.value.code


@pytest.mark.parametrize(
    'tool',
    ['ptq.py', 'test.py', 'search_bits.py', 'export.py', 'analyze.py'],
)
def test_errors_are_one_line(monkeypatch, capsys, tmp_path, tool):
    args = (tmp_path / 'none.py', 'none.pth', '--work-dir', tmp_path / 'run')
    assert call(monkeypatch, tool, *args) == 1
    error = capsys.readouterr().err
    assert 'No config at' in error and 'Traceback' not in error


def test_ctrl_c_says_how_to_go_on(monkeypatch, capfd, tmp_path):
    def interrupted(*args):
        _interrupt.set_resumable()
        raise KeyboardInterrupt

    monkeypatch.setattr('mmrazor_brecq.engine.launch.ptq', interrupted)
    args = (CONFIG, FLOAT, '--work-dir', tmp_path)
    assert call(monkeypatch, 'ptq.py', *args) == 130
    assert '--resume' in capfd.readouterr().err


def test_a_search_without_a_budget_says_so(monkeypatch, capsys, tmp_path):
    args = (CONFIG, FLOAT, '--work-dir', tmp_path)
    assert call(monkeypatch, 'search_bits.py', *args) == 1
    assert '--budget or --equal-to' in capsys.readouterr().err


def test_a_table_of_another_kind_is_refused(monkeypatch, capsys, tmp_path):
    args = (CONFIG, '--out', tmp_path / 'a.txt', '--work-dir', tmp_path)
    assert call(monkeypatch, 'measure_latency.py', *args) == 1
    assert '.csv or .json' in capsys.readouterr().err


@pytest.mark.parametrize('tool', TOOLS)
def test_help_has_a_text_and_the_default_of_each_option(
    monkeypatch, capsys, tool
):
    parsers = []
    monkeypatch.setattr(
        argparse.ArgumentParser,
        'parse_args',
        lambda self: parsers.append(self) or self.exit(),
    )
    assert call(monkeypatch, tool) == 0
    (parser,) = parsers
    without = {'cfg_options', 'latency_table', 'budget', 'equal_to', 'out'}
    without.add('recipe')
    text = ' '.join(parser.format_help().split())
    for action in parser._actions:
        assert action.help
        if action.option_strings and action.nargs != 0:
            option = action.option_strings[-1]
            own = text.split(f' {option} ')[-1].split(' --')[0]
            assert 'default' in own or action.dest in without, own


@pytest.mark.parametrize('tool', TOOLS)
def test_version(monkeypatch, capsys, tool):
    assert call(monkeypatch, tool, '--version') == 0
    assert __version__ in capsys.readouterr().out


def test_the_export_s_defaults_are_those_of_the_call(monkeypatch, capsys):
    from mmrazor_brecq.engine.deploy import Request

    call(monkeypatch, 'export.py', '--help')
    text = ' '.join(capsys.readouterr().out.split())
    for name in ('agreement', 'exact', 'within'):
        default = getattr(Request, f'least_{name}')
        own = text.split(f'--least-{name} ')[-1].split(' --')[0]
        assert f'(default: {default})' in own


SLIPS = {
    'a wrong config': (['none.py', FLOAT], 'No config at'),
    'a config of no such package': (['mmnone::a.py', FLOAT], 'not installed'),
    'a config of a package, misspelt': (
        [
            'mmrazor_brecq::brecq/resnet/brecq_resnet18_w4a4_fashion-mnst.py',
            FLOAT,
        ],
        'did you mean '
        "'mmrazor_brecq::brecq/resnet/brecq_resnet18_w4a4_fashion-mnist.py'",
    ),
    'a float config': (
        ['mmcls::resnet/resnet18_8xb32_in1k.py', FLOAT],
        'configures no quantization',
    ),
    'a missing checkpoint': ([CONFIG, 'none.pth'], 'No checkpoint at'),
    'a folder for a checkpoint': ([CONFIG, ROOT], 'which is a folder'),
    'a wrong key': (
        [CONFIG, FLOAT, '--cfg-options', 'modle.partition=None'],
        "did you mean 'model'",
    ),
    'a missing data folder': (
        [
            CONFIG,
            FLOAT,
            '--cfg-options',
            'test_cfg.calibration.dataloader.dataset.data_root=nowhere',
        ],
        'test_cfg.calibration.dataloader.dataset.data_root=',
    ),
    'no test images for a recipe': (
        ['mmcls::resnet/resnet18_8xb32_in1k.py', FLOAT, '--recipe', 'w4a4']
        + ['--calibration', 'demo'],
        'or add --no-eval',
    ),
    'no calibration images for a recipe': (
        ['mmcls::resnet/resnet18_8xb32_in1k.py', FLOAT, '--recipe', 'w4a4']
        + ['--no-eval'],
        'or name a folder of images with --calibration',
    ),
    'missing images of ImageNet': (
        ['mmrazor_brecq::brecq/resnet/brecq_resnet18_w4a4_in1k.py', FLOAT],
        "test_dataloader.dataset.data_root='data/imagenet' is not there",
    ),
}


@pytest.mark.parametrize('slip', SLIPS)
def test_a_slip_is_told_before_torch_is_imported(slip, tmp_path):
    """And leaves nothing behind."""
    args, words = SLIPS[slip]
    code = (
        'import runpy, sys\n'
        'sys.argv = sys.argv[1:]\n'
        'try:\n'
        '    runpy.run_path(sys.argv[0], run_name="__main__")\n'
        'finally:\n'
        '    assert "torch" not in sys.modules\n'
    )
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    (tmp_path / 'demo').symlink_to(ROOT / 'demo')
    result = subprocess.run(
        [sys.executable, '-c', code, ROOT / 'tools/ptq.py', *args],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=environment,
    )
    assert result.returncode == 1
    assert words in result.stderr and result.stderr.count('\n') == 1
    assert [path.name for path in tmp_path.iterdir()] == ['demo']


@pytest.mark.parametrize(
    'option, words',
    [
        ('model.reconstructor.iteration=3', "did you mean 'iterations'"),
        ('test_dataloader.dataset.data_rot=a', "did you mean 'data_root'"),
        ('model.reconstructor.rounding_lr=0.1', "data_root='data/imagenet'"),
    ],
)
def test_a_slip_in_an_option_is_told_before_missing_data(
    tmp_path, option, words
):
    config = 'mmcls::mobilenet_v2/mobilenet-v2_8xb32_in1k.py'
    result = subprocess.run(
        [sys.executable, ROOT / 'tools/ptq.py', config, FLOAT]
        + ['--recipe', 'w4a4', '--cfg-options', option],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=dict(os.environ, PYTHONPATH=str(ROOT)),
    )
    assert result.returncode == 1 and words in result.stderr
    assert result.stderr.count('\n') == 1
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named_on_one_line(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    args = (CONFIG, FLOAT, '--work-dir', tmp_path)
    args = (*args, '--output', tmp_path / 'a.onnx')
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
        # One that is done is not done again, unless it is begun anew.
        assert (tmp_path / 'quantized.1.pth').exists() == (not more)
        assert quantized.read_bytes() == before[quantized.name]
