from __future__ import annotations

import json
import sys

import pytest

import mmrazor_brecq
from mmrazor_brecq import cli


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """A checkout with two tools, one of which notes its arguments."""
    folder = tmp_path / 'tools'
    folder.mkdir()
    (folder / 'ptq.py').write_text(
        'import json, sys\n'
        'from pathlib import Path\n'
        'out = Path(__file__).with_name("argv")\n'
        'if __name__ == "__main__":\n'
        '    out.write_text(json.dumps(sys.argv))'
    )
    (folder / 'test.py').touch()
    monkeypatch.setattr(cli, 'PACKAGE', tmp_path / 'package')
    monkeypatch.setattr(sys, 'argv', ['pytest'])
    return folder


def test_runs_a_tool_with_its_arguments(tools):
    cli.main(['ptq', 'config.py', '--help', '--cfg-options', 'a=1'])
    argv = [str(tools / 'ptq.py'), 'config.py', '--help', '--cfg-options']
    assert json.loads((tools / 'argv').read_text()) == [*argv, 'a=1']


def test_prefers_the_tools_of_an_installed_package(tools):
    installed = cli.PACKAGE / '.mim' / 'tools'
    installed.mkdir(parents=True)
    (installed / 'export.py').touch()
    assert list(cli.find_tools()) == ['export']


@pytest.mark.parametrize(
    'argv, message',
    [
        ([], 'no tool given, choose from ptq, test'),
        (['qat', '--help'], "no such tool: 'qat', choose from ptq, test"),
    ],
)
def test_names_the_choices(tools, capsys, argv, message):
    with pytest.raises(SystemExit, match='2'):
        cli.main(argv)
    assert message in capsys.readouterr().err


def test_help_names_the_choices(tools, capsys):
    with pytest.raises(SystemExit, match='0'):
        cli.main(['--help'])
    assert 'ptq, test' in capsys.readouterr().out


def test_the_checkout_has_tools():
    assert 'ptq' in cli.find_tools()


def test_the_package_has_no_other_name():
    with pytest.raises(AttributeError, match='quantise'):
        mmrazor_brecq.quantise  # noqa: B018
