"""Keys that no part of a config takes are named with the nearest one."""

from __future__ import annotations

import pytest

from mmrazor_brecq.config.load import load_config
from mmrazor_brecq.config.recipe import Recipe
from mmrazor_brecq.engine.launch import _loop, build_model, build_runner
from mmrazor_brecq.engine.mistakes import check_options

from .conftest import CONFIG

pytest.importorskip('mmcls')

LOADER = 'test_cfg.calibration.dataloader'


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


@pytest.mark.parametrize(
    'key, value, words',
    [
        ('model.architecture.backbone.norm_cfg', dict(type='BNN'), "mean 'BN"),
        (
            'model.architecture.backbone.conv_cfg',
            dict(type='Conf2d'),
            "'Conv2d'",
        ),
        ('model.architecture.head.loss.type', 'CrossEntropyLos', "Loss'"),
        (
            'test_cfg.type',
            'mmrazor_brecq.PTQLop',
            "mean 'mmrazor_brecq.PTQLoop",
        ),
        (f'{LOADER}.sampler.type', 'DefaultSampelr', "'DefaultSampler'"),
        (
            f'{LOADER}.collate_fn',
            dict(type='pseudo_colate'),
            "'pseudo_collate'",
        ),
        ('log_processor', dict(type='LogProcesor'), "mean 'LogProcessor'"),
    ],
)
def test_the_nearest_type_is_named_at_any_depth(tmp_path, key, value, words):
    cfg = load_config(CONFIG, {key: value}, str(tmp_path))
    cfg.experiment_name = str(tmp_path)  # Two runs may begin in one second.
    with pytest.raises(ValueError, match=words) as info:
        if key.startswith('model'):
            build_model(cfg)
        _loop(build_runner(cfg))
    assert key in str(info.value)


def test_a_slip_in_a_key_of_the_outermost_level_is_refused(tmp_path):
    """What nothing reads would be lost without a word."""
    path = tmp_path / 'mine.py'
    path.write_text(
        f'_base_ = {CONFIG!r}\nmixed_precison = dict(bits=[4, 8])\n'
    )
    with pytest.raises(ValueError, match="mean 'mixed_precision'"):
        load_config(str(path))
    path.write_text(f'_base_ = {CONFIG!r}\ntest_evaluator2 = my_own = 3\n')
    assert load_config(str(path)).my_own == 3
    with pytest.raises(ValueError, match="mean 'mmrazor_brecq.BRECQ'"):
        load_config(CONFIG, {'model.type': 'mmrazor_brecq.BREQC'})
