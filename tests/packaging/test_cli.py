from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import mmrazor_brecq
from mmrazor_brecq import cli
from mmrazor_brecq.config.load import read_config
from mmrazor_brecq.reconstruction import BlockReconstructor

ROOT = Path(__file__).parents[2]


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


@pytest.mark.parametrize(
    ('given', 'value'),
    [
        ('3', 3),
        ('None', None),
        ('1,2', [1, 2]),
        ('runs/{name}', 'runs/{name}'),
        ('[relu, gelu]', ['relu', 'gelu']),
        ("{'head.fc': 4}", {'head.fc': 4}),
        ("{'a': 4, 'b.c': 8}", {'a': 4, 'b.c': 8}),
        (
            "{'a.*': 8, 'head.fc': dict(weight=4)}",
            {'a.*': 8, 'head.fc': {'weight': 4}},
        ),
        ("dict(type='Flip', _delete_=True)", dict(type='Flip', _delete_=True)),
        (
            "[dict(type='Flip'), dict(type='CutMix', size=(0.1, 0.5))]",
            [dict(type='Flip'), dict(type='CutMix', size=(0.1, 0.5))],
        ),
    ],
)
def test_options_are_as_in_a_config(given, value):
    parser = cli.tool_parser(None, 'a config')
    args = parser.parse_args(['config.py', '--cfg-options', f'a.b={given}'])
    assert args.cfg_options == {'a.b': value}


@pytest.mark.parametrize(
    'given', ['a.b', "a.b={'c': 4", 'a.b=dict(print())', 'a.b={c: 4}']
)
def test_options_of_another_form_are_named(given, capsys):
    parser = cli.tool_parser(None, 'a config')
    with pytest.raises(SystemExit, match='2'):
        parser.parse_args(['config.py', '--cfg-options', given])
    error = capsys.readouterr().err
    assert 'a.b' in error and 'expected' in error


def fails(error):
    raise error


@pytest.mark.parametrize(('own', 'found'), [(None, '1'), ('0', '0')])
def test_large_pages_are_asked_for_unless_somebody_says_otherwise(
    own, found, monkeypatch
):
    """While a tool works, which imports torch only then."""
    name, seen = 'THP_MEM_ALLOC_ENABLE', []
    monkeypatch.setenv(name, own or '')
    if own is None:
        monkeypatch.delenv(name)
    args = cli.tool_parser(None, 'a config').parse_args(['config.py'])

    assert cli.run_tool(args, lambda: seen.append(os.environ[name])) == 0
    assert seen == [found]


@pytest.mark.parametrize('error', [ValueError('odd'), KeyError('odd')])
def test_a_mistake_in_code_of_ones_own_keeps_its_place(error):
    args = cli.tool_parser(None, 'a config').parse_args(['config.py'])
    with pytest.raises(type(error), match='odd'):
        cli.run_tool(args, lambda: fails(error))


def test_a_mistake_that_is_told_ends_in_one_line(capsys):
    args = cli.tool_parser(None, 'a config').parse_args(['none.py'])
    for action in (
        lambda: read_config(args.config),
        lambda: BlockReconstructor(iterations=0),
    ):
        assert cli.run_tool(args, action) == 1
        assert capsys.readouterr().err.count('\n') == 1


@pytest.mark.parametrize('tool', ['ptq', 'export'])
@pytest.mark.parametrize('through', ['command', 'script'])
def test_help_names_what_was_run(tool, through):
    code = 'from mmrazor_brecq.cli import main; main()'
    command, usage = dict(
        command=(['-c', code, tool], f'mmrazor-brecq {tool} '),
        script=([str(ROOT / f'tools/{tool}.py')], f'{tool}.py '),
    )[through]
    done = subprocess.run(
        [sys.executable, *command, '--help'],
        capture_output=True,
        text=True,
        env=dict(os.environ, PYTHONPATH=str(ROOT)),
    )
    assert done.stdout.startswith(f'usage: {usage}'), done.stderr
