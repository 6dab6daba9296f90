"""Code in README and CONTRIBUTING, run as it stands there."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch

import mmrazor_brecq
from mmrazor_brecq import api
from mmrazor_brecq.export import TARGETS, build_target
from mmrazor_brecq.layers import quant_layers
from mmrazor_brecq.registry import TASK_UTILS

ROOT = Path(__file__).parents[2]


def blocks(page: str) -> list[str]:
    """The blocks of Python in a page."""
    text = (ROOT / page).read_text(encoding='utf-8')
    return re.findall(r'^```python\n(.*?)^```', text, re.M | re.S)


def snippet(name: str) -> str:
    """The block of CONTRIBUTING that defines a class."""
    found = [x for x in blocks('CONTRIBUTING.md') if f'class {name}(' in x]
    assert len(found) == 1
    return found[0]


@pytest.fixture
def define(tmp_path, monkeypatch):
    """Imports a snippet as a module of one's own; forgets its parts."""

    def run(name):
        (tmp_path / f'own_{name}.py').write_text(snippet(name))
        monkeypatch.syspath_prepend(str(tmp_path))
        module = __import__(f'own_{name}')
        return getattr(module, name)

    registries = (TASK_UTILS, TARGETS)
    before = [dict(registry.module_dict) for registry in registries]
    yield run
    for registry, parts in zip(registries, before):
        registry.module_dict.clear()
        registry.module_dict.update(parts)
    for name in [name for name in sys.modules if name.startswith('own_')]:
        del sys.modules[name]


@pytest.mark.parametrize('page', ['README.md', 'docs/quickstart.md'])
def test_the_api_runs_as_written(page, toy, generator, tmp_path, monkeypatch):
    pytest.importorskip('onnxruntime')
    (block,) = [x for x in blocks(page) if 'export_onnx' in x]
    brief = dict(type='BlockReconstructor', iterations=2)
    monkeypatch.setattr(api, 'read_part', lambda *names: brief)
    monkeypatch.chdir(tmp_path)
    names = dict(
        float_model=toy('residual'),
        images=torch.randn(128, 3, 8, 8, generator=generator),
    )
    exec(compile(block, page, 'exec'), names)
    assert (tmp_path / 'quantized.pth').is_file()
    assert (tmp_path / 'quantized.onnx').is_file()
    assert names['report']['units']
    loaded = names['model'](names['images'])
    assert loaded.shape == names['float_model'](names['images']).shape


def test_the_site_has_the_api_of_readme():
    (readme,) = [x for x in blocks('README.md') if 'export_onnx' in x]
    for page in ('docs/index.md', 'docs/quickstart.md'):
        assert readme in blocks(page), page


def test_an_objective_of_ones_own(define, toy, generator):
    objective = define('LogCosh')()
    target = torch.randn(4, 5, generator=generator)
    index = torch.arange(4)
    assert objective.error(None, 0, target, target, index).abs() < 1e-6
    small = objective.error(None, 0, target + 0.01, target, index)
    torch.testing.assert_close(
        small, torch.tensor(0.01**2 / 2), rtol=0.1, atol=0
    )
    _, report = mmrazor_brecq.quantize(
        toy('residual'),
        torch.randn(64, 3, 8, 8, generator=generator),
        reconstructor=dict(
            type='BlockReconstructor',
            iterations=2,
            objective=dict(type='LogCosh'),
        ),
    )
    assert all(unit['before'] > 0 for unit in report['units'])


def test_a_target_of_ones_own(define, toy, generator):
    define('MyNPU')
    target = build_target('my-npu')
    assert target.stored_bits(3, pack=True) == 4
    images = torch.randn(64, 3, 8, 8, generator=generator)
    model, _ = mmrazor_brecq.quantize(
        toy('residual'),
        images,
        reconstructor=dict(type='NearestRounding'),
    )
    with pytest.raises(ValueError, match='My NPU takes symmetric'):
        target.check(model)


def test_a_partition_of_ones_own(define, toy, generator):
    define('ByClass')
    model, report = mmrazor_brecq.quantize(
        toy('residual'),
        torch.randn(64, 3, 8, 8, generator=generator),
        reconstructor=dict(type='NearestRounding'),
        partition=dict(type='ByClass', classes=['Sequential']),
    )
    names = [unit['name'] for unit in report['units']]
    # The stem, all blocks as one, and the head, which is in no Sequential.
    assert names == ['stem', 'blocks', 'head']
    assert all(layer.frozen for layer in quant_layers(model).values())
