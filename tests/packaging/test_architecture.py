"""Imports point one way, from the runner down to pure tensor maths."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = 'mmrazor_brecq'

#: From the bottom up; a part may import from lower lines, never from others
#: of its own line. Every module of the package has its place here.
LINES = [
    ['version', '_requirements', '_interrupt', '_terminal'],
    ['mmcv_ext', 'validation'],
    ['runtime'],
    ['functional'],
    ['registry'],
    ['config'],
    ['targets'],
    ['quantizers', 'datasets', 'models'],
    ['layers'],
    ['graph'],
    ['activations'],
    ['objectives'],
    ['reconstruction'],
    ['algorithms'],
    ['checkpoint', 'export', 'analysis'],
    ['report'],
    ['mixed_precision'],  # it times layers in the export's runtime
    ['engine'],
    ['api', 'cli'],
    [''],  # the package's own __init__
]
LINE = {part: i for i, parts in enumerate(LINES) for part in parts}

KNOWS_THE_RUNNER = {'engine', 'api', 'tools'}
HOSTS = {'mmcls', 'mmpretrain', 'mmdet', 'mmseg', 'mmrazor'}


def imports_of(module: str, source: str, is_package: bool) -> set[str]:
    """The dotted names that a module imports, all absolute.

    ``from a import b`` gives ``a.b``: what ``b`` is makes no difference here.
    """
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ''
            if node.level:
                parts = module.split('.')
                up = node.level - is_package
                parts = parts[: len(parts) - up]
                base = '.'.join([*parts, base] if base else parts)
            names.update(f'{base}.{alias.name}' for alias in node.names)
    return names


def part_of(name: str) -> str:
    """'mmrazor_brecq.graph.fold' is of 'graph', the package itself of ''."""
    return (name.split('.') + [''])[1]


def violations(module: str, source: str, is_package: bool = False) -> list:
    """The imports of a module that point the wrong way."""
    own = 'tools' if module.startswith('tools.') else part_of(module)
    found = []
    for name in sorted(imports_of(module, source, is_package)):
        root = name.split('.')[0]
        if root in HOSTS:
            found.append(f'{module} imports {name}: no host by name')
        if f'{name}.'.startswith('mmengine.runner.') and (
            own not in KNOWS_THE_RUNNER
        ):
            found.append(f'{module} imports {name}: it knows no runner')
        if own == 'functional' and not (
            root in {'torch'} | set(sys.stdlib_module_names)
            or f'{name}.'.startswith(f'{PACKAGE}.functional.')
            or f'{name}.'.startswith(f'{PACKAGE}.runtime.kernels.')
        ):
            found.append(f'{module} imports {name}: torch alone')
        if root == PACKAGE and own != 'tools':
            other = part_of(name)
            other = other if other in LINE else ''
            if other != own and LINE[other] >= LINE[own]:
                found.append(f'{module} imports {name}: imports point down')
    return found


def modules() -> list:
    """Every module of the package, and every tool, as test cases."""
    cases = []
    for top in (PACKAGE, 'tools'):
        for file in sorted((ROOT / top).rglob('*.py')):
            if '.mim' in file.parts:
                continue
            path = file.relative_to(ROOT).with_suffix('')
            is_package = path.name == '__init__'
            name = '.'.join((path.parent if is_package else path).parts)
            cases.append(pytest.param(file, name, is_package, id=name))
    return cases


@pytest.mark.parametrize('file, name, is_package', modules())
def test_imports_point_one_way(file, name, is_package):
    if name.startswith(PACKAGE):
        assert part_of(name) in LINE, (
            f'{name} has no place in LINES: give it one'
        )
    assert not violations(name, file.read_text(), is_package)


@pytest.mark.parametrize(
    'module, source, is_package',
    [
        ('functional.affine', 'import numpy', False),
        ('functional.affine', 'import mmengine', False),
        ('functional.affine', 'from ..registry import MODELS', False),
        ('functional', 'from ..quantizers import weight', True),
        ('quantizers.weight', 'from ..layers.conv import QuantConv2d', False),
        ('quantizers', 'from .. import layers', True),
        ('graph.fold', 'def f():\n    import mmrazor_brecq.algorithms', False),
        ('graph.fold', 'from mmrazor_brecq import reconstruction', False),
        ('reconstruction.stream', 'from ..engine.loops import PTQLoop', False),
        ('algorithms.brecq', 'from mmengine.runner import Runner', False),
        ('algorithms.brecq', 'from mmengine import runner', False),
        ('algorithms.brecq', 'import mmengine.runner.checkpoint', False),
        ('algorithms.brecq', 'from mmrazor_brecq import quantize', False),
        ('report.table', 'from ..engine import loops', False),
        ('report.table', 'from ..mixed_precision import search', False),
        ('engine.loops', 'from mmcls.models import ResNet', False),
        ('api', 'import mmpretrain', False),
        ('export', 'from mmrazor.models import LSQ', True),
    ],
)
def test_would_notice(module, source, is_package):
    assert len(violations(f'{PACKAGE}.{module}', source, is_package)) >= 1


@pytest.mark.parametrize(
    'module, source, is_package',
    [
        ('functional', 'from .affine import quantize', True),
        ('functional.affine', 'import math\nfrom torch import nn', False),
        ('quantizers.weight', 'from ..functional import affine', False),
        ('quantizers.weight', 'from .rounding import AdaRound', False),
        ('quantizers', 'from .weight import WeightQuantizer', True),
        ('quantizers.weight', 'from mmrazor_brecq.registry import A', False),
        ('engine.loops', 'from mmengine.runner import TestLoop', False),
        ('engine.loops', 'from ..algorithms.brecq import BRECQ', False),
        ('engine.loops', 'from ..report import table', False),
        ('api', 'from mmengine.runner import Runner', False),
        ('', 'from .version import __version__', True),
    ],
)
def test_lets_pass(module, source, is_package):
    name = f'{PACKAGE}.{module}'.rstrip('.')
    assert violations(name, source, is_package) == []
