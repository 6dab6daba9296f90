from __future__ import annotations

import pytest
from mmengine.config import Config

from mmrazor_brecq.engine.results import best_metric


@pytest.mark.parametrize(
    ('hooks', 'metric'),
    [
        (dict(checkpoint=dict(save_best='coco/bbox_mAP')), 'coco/bbox_mAP'),
        (dict(checkpoint=dict(save_best=['mIoU', 'mAcc'])), 'mIoU'),
        (dict(checkpoint=dict(save_best='auto')), None),
        (dict(checkpoint=dict(interval=1)), None),
        (dict(checkpoint=None), None),
        (None, None),
    ],
)
def test_the_hook_that_saves_checkpoints_names_the_metric(hooks, metric):
    assert best_metric(Config(dict(default_hooks=hooks))) == metric


def test_a_config_without_hooks_names_none():
    assert best_metric(Config({})) is None
