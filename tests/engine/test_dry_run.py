"""A plan of a run: what it will do and take, and nothing on the disk."""

from __future__ import annotations

import os
import tempfile

import pytest

from mmrazor_brecq.engine.dry_run import dry_run
from mmrazor_brecq.report import plan_table

from .conftest import FLOAT, quick_config
from .test_no_eval import config as no_test_images


@pytest.fixture(scope='module')
def planned(tmp_path_factory):
    folder = tmp_path_factory.mktemp('plan')
    cfg = quick_config(
        folder / 'a' / 'run',
        model__reconstructor__iterations=20,
        model__quantization__bit_overrides={'backbone.layer4.1.*': None},
    )
    before = cfg.to_dict()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, 'tempdir', str(folder))
        plan = dry_run(cfg, FLOAT)
    assert cfg.to_dict() == before
    return folder, plan


def test_a_plan_leaves_no_file(planned):
    folder, _ = planned
    # The compiler's own folder is that of all processes.
    assert [n for n in os.listdir(folder) if 'inductor' not in n] == []


def test_a_plan_has_units_bits_and_what_stays_float(planned):
    _, plan = planned
    assert [unit['name'] for unit in plan['units']][-1] == 'head.fc'
    assert plan['units'][0]['bits'] == {'backbone.conv1': (8, 8)}
    left = plan['account']['left_float']
    assert list(left) == ['backbone.layer4.1.conv1', 'backbone.layer4.1.conv2']
    table = plan_table(plan)
    for words in (
        *('backbone.layer1.0.conv2', '9 units; 19 of 21 layers quantized'),
        'in float: backbone.layer4.1.conv1 (',
        'without --dry-run begins',
    ):
        assert words in ' '.join(table.split()), words


def test_each_part_of_a_run_is_estimated(planned):
    _, plan = planned
    seconds = dict(plan['seconds'])
    total = seconds.pop('total')
    assert set(seconds) == {'prepare', 'evaluate', 'nearest', 'reconstruct'}
    assert all(value > 0 for value in seconds.values())
    assert total == pytest.approx(sum(seconds.values()))
    assert plan['memory_mb'] > 100


def test_a_plan_does_without_learning_and_test_images(tmp_path):
    cfg = no_test_images(tmp_path / 'run')
    cfg.model.reconstructor = dict(type='NearestRounding')
    plan = dry_run(cfg, FLOAT)
    assert plan['seconds']['evaluate'] == 0 < plan['seconds']['nearest']
    assert not (tmp_path / 'run').exists()
