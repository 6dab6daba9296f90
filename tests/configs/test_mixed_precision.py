"""The configs of mixed precision fit their models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from mmrazor_brecq.engine.sensitivity_run import MixedPrecision
from mmrazor_brecq.mixed_precision import find_choices, uniform

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / 'configs/mixed_precision').glob('*.py'))
BASES = sorted((ROOT / 'configs/_base_/mixed_precision').glob('*.py'))


@pytest.mark.parametrize('path', BASES, ids=lambda path: path.stem)
def test_base_configs_have_no_unknown_key(path):
    settings = MixedPrecision.of(Config.fromfile(path))
    assert settings.bits == (2, 3, 4, 6, 8)


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_patterns_match_and_leave_several_bit_widths(path):
    cfg = Config.fromfile(path)
    settings = MixedPrecision.of(cfg)
    with DefaultScope.overwrite_default_scope('mmcls'):
        model = MODELS.build(cfg.model).eval()
    models = {b: uniform(model, b, settings.kinds) for b in settings.ends}
    for one in models.values():
        one.prepare(torch.zeros(1, 3, 64, 64))
    choices = find_choices(models, settings.kinds)
    leaders, bits = settings.common(choices)
    assert any(len(found) > 1 for found in bits.values())
    shared = len(leaders) - len(set(leaders.values()))
    assert bool(settings.shared) == bool(shared)
