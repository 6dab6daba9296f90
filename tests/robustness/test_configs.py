"""Configs from strangers: YAML and JSON run nothing and stay in limits."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmrazor_brecq.config.read import read_file

ROOT = Path(__file__).parents[2]
TOOLS = [
    'ptq.py',
    'test.py',
    'export.py',
    'search_bits.py',
    'measure_latency.py',
    'train.py',
]


def billion_laughs(levels=12, count=10):
    """Return aliases of aliases: 10^12 values in twelve lines."""
    lines = ['a0: &a0 [lol]']
    for i in range(1, levels):
        inner = ', '.join([f'*a{i - 1}'] * count)
        lines.append(f'a{i}: &a{i} [{inner}]')
    return '\n'.join(lines) + '\n'


ATTACKS = {
    'apply': "a: !!python/object/apply:os.system ['touch pwned']\n",
    'new': "a: !!python/object/new:os.system ['touch pwned']\n",
    'object': 'a: !!python/object:collections.Counter {}\n',
    'name': 'a: !!python/name:os.system\n',
    'module': 'a: !!python/module:antigravity\n',
    'in a key': "? !!python/object/apply:os.system ['touch pwned']\n: 1\n",
    'in a tuple': 'a: !!python/tuple [!!python/name:os.system ]\n',
    'of a tag of its own': '%TAG ! tag:yaml.org,2002:python/\n---\n'
    "a: !object/apply:os.system ['touch pwned']\n",
    'laughs': billion_laughs(),
    'laughs by merging': 'a0: &a0 {x: 1}\n'
    + ''.join(
        f'a{i}: &a{i} {{<<: [{", ".join([f"*a{i - 1}"] * 10)}]}}\n'
        for i in range(1, 12)
    ),
    'an alias of itself': 'a: &a [*a]\n',
    'an alias of a key of itself': 'a: &a {b: {c: *a}}\n',
    'depth': 'a: ' + '[' * 50_000 + '\n',
    'depth in blocks': ''.join(' ' * i + 'a:\n' for i in range(1000)),
    'a list': '- 1\n- 2\n',
    'nothing': '',
    'a number': '3\n',
    'keys of numbers': '1: 2\n',
    'two documents': 'a: 1\n---\nb: 2\n',
    'no YAML': 'a: [1\n',
    'a tab': 'a:\n\t- 1\n',
    'bytes': 'a: "\x00"\n',
    'a placeholder that is a pattern': "a: '{{$X:(a+)+b}}'\n" + 'a' * 40,
    'placeholders without end': 'a: ' + '{{$X:' * 5000,
    'the tag after filling in': 'a: !!python/object/apply:os.{{$X:system}} '
    "['touch pwned']\n",
}
JSON = {
    'depth': '[' * 100_000,
    'depth below a key': '{"a": ' + '[' * 100_000,
    'a list': '[1]',
    'no JSON': '{"a": }',
    'nothing': '',
}
FILES = [('a.yml', text, name) for name, text in ATTACKS.items()]
FILES += [('a.json', text, f'JSON {name}') for name, text in JSON.items()]


@pytest.mark.parametrize('via', ['itself', 'py', 'yml', 'json'])
@pytest.mark.parametrize(
    'file, text', [pytest.param(f, t, id=name) for f, t, name in FILES]
)
def test_a_malicious_config_is_refused_and_runs_nothing(
    tmp_path, monkeypatch, file, text, via
):
    monkeypatch.chdir(tmp_path)
    Path(file).write_text(text)
    heirs = dict(
        py=f'_base_ = {file!r}\n',
        yml=f'_base_: {file}\n',
        json=f'{{"_base_": "{file}"}}',
    )
    name = file
    if via in heirs:
        name = f'heir.{via}'
        Path(name).write_text(heirs[via])
    with pytest.raises(ValueError, match=rf'{file}|cannot be read'):
        read_file(name)
    assert not Path('pwned').exists()


@pytest.mark.parametrize('tool', TOOLS)
def test_no_tool_runs_code_in_yaml(tmp_path, tool):
    path = tmp_path / 'a.yml'
    path.write_text(ATTACKS['apply'])
    args = [] if tool in ('measure_latency.py', 'train.py') else ['a.pth']
    args += ['--out', 'a.csv'] if tool == 'measure_latency.py' else []
    result = subprocess.run(
        [sys.executable, ROOT / 'tools' / tool, path, *args],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=dict(os.environ, PYTHONPATH=str(ROOT)),
        timeout=60,
    )
    assert result.returncode == 1 and 'nothing in it is run' in result.stderr
    assert result.stderr.count('\n') == 1
    assert os.listdir(tmp_path) == ['a.yml']


def test_special_files_are_not_opened(tmp_path):
    for name in ('a.py', 'a.yml'):
        os.mkfifo(tmp_path / name)
        with pytest.raises(ValueError, match='no regular file'):
            read_file(str(tmp_path / name))
    (tmp_path / 'heir.py').write_text("_base_ = 'a.py'\n")
    with pytest.raises(ValueError, match='no regular file'):
        read_file(str(tmp_path / 'heir.py'))


def test_too_many_bases_are_refused(tmp_path):
    (tmp_path / 'a0.yml').write_text('{}\n')
    for i in range(1, 40):
        for name in (f'a{i}.yml', f'b{i}.yml'):
            bases = f'[a{i - 1}.yml, {"ab"[i > 1]}{i - 1}.yml]'
            (tmp_path / name).write_text(f'_base_: {bases}\n')
    with pytest.raises(ValueError, match='inherits more than'):
        read_file(str(tmp_path / 'a39.yml'))
