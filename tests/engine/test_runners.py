"""Later runners keep the config of a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmrazor_brecq import _terminal
from mmrazor_brecq.config.load import load_config
from mmrazor_brecq.engine.launch import build_runner
from mmrazor_brecq.engine.runners import RunOwner, RunVisitor

from .conftest import CONFIG, quick_config

NAME = Path(CONFIG).name


def files(folder):
    """Return the text of each file in a folder, without subfolders."""
    return {p.name: p.read_text() for p in folder.iterdir() if p.is_file()}


def begin(cfg, kind):
    """Return a runner whose work has begun."""
    runner = build_runner(cfg, kind)
    runner.begin()
    return runner


def test_a_visitor_keeps_the_config_of_a_run(tmp_path):
    begin(quick_config(tmp_path), RunOwner)
    before = files(tmp_path)
    assert set(before) == {NAME}
    cfg = quick_config(tmp_path, randomness__seed=3)
    cfg.test_cfg = dict()
    runner = begin(cfg, RunVisitor)
    assert isinstance(build_runner(cfg), RunVisitor)
    assert files(tmp_path) == before
    beside_the_log = Path(runner.log_dir) / NAME
    assert "'seed': 3" in beside_the_log.read_text()


def test_a_run_with_the_same_config_keeps_it(tmp_path):
    begin(quick_config(tmp_path), RunOwner)
    before = files(tmp_path)
    for _ in range(2):
        cfg = load_config(str(tmp_path / NAME), None, str(tmp_path))
        begin(cfg, RunOwner)
    assert files(tmp_path) == before


def test_the_config_of_another_run_is_renamed(tmp_path):
    begin(quick_config(tmp_path), RunOwner)
    (before,) = files(tmp_path).values()
    begin(quick_config(tmp_path, randomness__seed=3), RunOwner)
    after = files(tmp_path)
    assert after[NAME.replace('.py', '.1.py')] == before
    assert "'seed': 3" in after[NAME]


def test_a_config_comes_back_in_its_order(tmp_path):
    """Of `bit_overrides` the later entries win."""
    cfg = quick_config(tmp_path)
    order = ['backbone.layer1.*', 'backbone.*', 'head.fc']
    cfg.model.quantization.bit_overrides = dict.fromkeys(order, 8)
    cfg.test_dataloader.dataset.metainfo = dict(classes=("it's", 'a "b"'))
    begin(cfg, RunOwner)
    found = load_config(str(tmp_path / NAME), None, str(tmp_path))
    assert list(found.model.quantization.bit_overrides) == order
    for part in ('model', 'test_dataloader', 'test_evaluator', 'test_cfg'):
        assert repr(found.to_dict()[part]) == repr(cfg.to_dict()[part])


def test_the_terminal_shows_no_environment_and_no_config(tmp_path, capsys):
    """The log file has them, and later lines go to both."""
    runner = build_runner(quick_config(tmp_path), RunOwner)
    runner.logger.info('the first useful line')
    shown = capsys.readouterr()
    lines = (shown.out + shown.err).splitlines()
    assert len([line for line in lines if 'INFO' in line]) <= 3
    assert runner.log_dir in '\n'.join(lines)
    assert lines[-1].endswith('the first useful line')
    (log,) = Path(runner.log_dir).glob('*.log')
    text = log.read_text()
    for part in ('System environment', 'Config:', 'Hooks', 'useful line'):
        assert part in text


def test_warnings_while_a_runner_is_built_are_shown(
    tmp_path, capsys, monkeypatch
):
    def warn(self, *args, **kwargs):
        self.logger.warning('mind this')
        return register(self, *args, **kwargs)

    register = RunOwner.register_hooks
    monkeypatch.setattr(RunOwner, 'register_hooks', warn)
    build_runner(quick_config(tmp_path), RunOwner)
    assert 'mind this' in capsys.readouterr().out


@pytest.mark.parametrize('level', [_terminal.QUIET, _terminal.VERBOSE])
def test_a_quiet_terminal_shows_warnings_a_verbose_one_all(
    tmp_path, capsys, level
):
    token = _terminal.LEVEL.set(level)
    try:
        runner = build_runner(quick_config(tmp_path), RunOwner)
        runner.logger.info('a line')
        runner.logger.warning('mind this')
    finally:
        _terminal.LEVEL.reset(token)
    shown = capsys.readouterr()
    text = shown.out + shown.err
    assert 'mind this' in text
    for words in 'System environment', 'Environment and config', 'a line':
        assert (words in text) == (level == _terminal.VERBOSE), words
    (log,) = Path(runner.log_dir).glob('*.log')
    assert 'System environment' in log.read_text()
