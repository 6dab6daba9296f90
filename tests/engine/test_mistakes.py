"""Keys that no part of a config takes are named with the nearest one."""

from __future__ import annotations

import pytest

from mmrazor_brecq.config.load import load_config
from mmrazor_brecq.config.recipe import Recipe
from mmrazor_brecq.engine.mistakes import check_options

pytest.importorskip('mmcls')


@pytest.mark.parametrize(
    'option, words',
    [
        ('model.reconstructor.iteration', "did you mean 'iterations'"),
        ('test_dataloader.batchsize', "did you mean 'batch_size'"),
        ('test_cfg.calibraton.num_images', "did you mean 'calibration'"),
        ('test_dataloader.dataset.data_rot', "did you mean 'data_root'"),
        ('test_dataloader.dataset.pipeline.1.scal', "did you mean 'scale'"),
        ('test_evaluator.topc', "did you mean 'topk'"),
        ('model.architecture.backbone.widen_facto', "mean 'widen_factor'"),
        # What some part takes, or nothing is known of.
        ('model.reconstructor.rounding_lr', ''),
        ('test_dataloader.dataset.indices', ''),
        ('test_dataloader.dataset.quite_another', ''),
        ('model.architecture.backbone.widen_factor', ''),
        ('test_dataloader.dataset.metainfo.classs', ''),
        ('env_cfg.whatever', ''),
    ],
)
def test_a_slip_in_an_option_is_named(tmp_path, option, words):
    cfg = load_config(
        'mmcls::mobilenet_v2/mobilenet-v2_8xb32_in1k.py',
        {option: 1},
        str(tmp_path),
        recipe=Recipe('w4a4'),
    )
    if not words:
        check_options(cfg, [option])
        return
    with pytest.raises(ValueError, match=words):
        check_options(cfg, [option])
