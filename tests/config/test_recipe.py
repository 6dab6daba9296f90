"""A recipe is composed onto a float config."""

from __future__ import annotations

import copy

import pytest
from mmengine.config import Config

from mmrazor_brecq.config.load import read_config
from mmrazor_brecq.config.recipe import Recipe, compose

TEST_PIPELINE = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=32),
    dict(type='PackClsInputs'),
]


@pytest.fixture
def cfg():
    """Return a float config like those of mmcls."""
    loader = dict(batch_size=4, num_workers=2, persistent_workers=True)
    return Config(
        dict(
            default_scope='mmcls',
            model=dict(type='ImageClassifier', backbone=dict(type='ResNet')),
            train_dataloader=dict(
                loader,
                dataset=dict(
                    type='ImageNet',
                    data_root='data/imagenet',
                    data_prefix='train',
                    pipeline=[dict(type='RandomFlip', prob=0.5)],
                ),
            ),
            test_dataloader=dict(
                loader,
                dataset=dict(
                    type='ImageNet',
                    data_root='data/imagenet',
                    data_prefix='val',
                    pipeline=TEST_PIPELINE,
                ),
                sampler=dict(type='DefaultSampler', shuffle=False),
            ),
            val_dataloader=dict(batch_size=4),
            test_evaluator=dict(type='Accuracy', topk=(1, 5)),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
            train_cfg=dict(by_epoch=True, max_epochs=1),
        ),
        cfg_text='# a config of mmcls',
        filename='configs/resnet18_in1k.py',
    )


def test_the_model_is_wrapped_and_its_test_settings_stay(cfg):
    composed = compose(cfg, Recipe('w4a8', 'fast', num_images=7))
    assert composed.model.type == 'mmrazor_brecq.BRECQ'
    assert composed.model.architecture == cfg.model
    assert composed.model.quantization.weight.bits == 4
    assert composed.model.quantization.activation.bits == 8
    assert composed.model.reconstructor.type == 'BlockReconstructor'
    assert composed.model.reconstructor.batch_size == 32
    assert composed.test_cfg.calibration.num_images == 7
    for key in ('test_dataloader', 'test_evaluator', 'default_scope'):
        assert composed[key] == cfg[key]


def test_training_images_with_the_test_pipeline_calibrate(cfg):
    loader = compose(cfg, Recipe('w4a4')).test_cfg.calibration.dataloader
    assert loader.dataset.data_prefix == 'train'
    assert loader.dataset.pipeline == TEST_PIPELINE
    assert loader.sampler.shuffle
    assert loader.batch_size == 4


def test_no_training_settings_are_left(cfg):
    composed = compose(cfg, Recipe('w4a4'))
    for key in ('train_cfg', 'train_dataloader', 'optim_wrapper', 'val_cfg'):
        assert composed[key] is None


def test_the_float_config_is_not_changed(cfg):
    before = copy.deepcopy(cfg.to_dict())
    compose(cfg, Recipe('w2a2'))
    assert cfg.to_dict() == before


def test_the_composed_config_can_be_dumped_and_read(cfg, tmp_path):
    composed = compose(cfg, Recipe('w4a4'))
    assert composed.filename == 'resnet18_in1k_w4a4.py'
    composed.dump(str(tmp_path / composed.filename))
    again = Config.fromfile(tmp_path / composed.filename)
    assert again.to_dict() == composed.to_dict()


def test_wrapped_data_sets_get_the_test_pipeline(cfg):
    inner = cfg.train_dataloader.dataset
    cfg.train_dataloader.dataset = dict(
        type='RepeatDataset',
        times=3,
        dataset=dict(type='ConcatDataset', datasets=[inner, inner]),
    )
    loader = compose(cfg, Recipe('w4a4')).test_cfg.calibration.dataloader
    assert loader.dataset.type == 'ConcatDataset'
    for part in loader.dataset.datasets:
        assert part.data_prefix == 'train'
        assert part.pipeline == TEST_PIPELINE


def test_a_folder_of_images_calibrates(cfg, tmp_path):
    recipe = Recipe('w4a4', calibration=str(tmp_path))
    dataset = compose(cfg, recipe).test_cfg.calibration.dataloader.dataset
    assert dataset.type == 'mmrazor_brecq.UnlabeledImages'
    assert dataset.data_root == str(tmp_path)
    assert dataset.pipeline == TEST_PIPELINE


def test_a_list_of_images_calibrates(cfg, tmp_path):
    (tmp_path / 'some.txt').write_text('a.jpg 3\n')
    recipe = Recipe('w4a4', calibration=str(tmp_path / 'some.txt'))
    dataset = compose(cfg, recipe).test_cfg.calibration.dataloader.dataset
    assert dataset.data_root == str(tmp_path)
    assert dataset.ann_file == 'some.txt'


def test_labels_of_unlabeled_images_are_not_loaded(cfg, tmp_path):
    cfg.test_dataloader.dataset.pipeline = [
        dict(type='LoadAnnotations', with_bbox=True),
        dict(type='PackClsInputs'),
    ]
    recipe = Recipe('w4a4', calibration=str(tmp_path))
    dataset = compose(cfg, recipe).test_cfg.calibration.dataloader.dataset
    types = [transform.type for transform in dataset.pipeline]
    assert types == ['LoadImageFromFile', 'PackClsInputs']


def test_bits_and_schedule_may_be_files_of_the_user(cfg, tmp_path):
    bits, schedule = tmp_path / 'w5a6.py', tmp_path / 'slow.py'
    bits.write_text('bits = dict(weight=dict(bits=5))\n')
    schedule.write_text("schedule = dict(type='NearestRounding')\n")
    composed = compose(cfg, Recipe(str(bits), str(schedule)))
    assert composed.model.quantization.weight.bits == 5
    assert composed.model.reconstructor.type == 'NearestRounding'
    assert composed.filename == 'resnet18_in1k_w5a6.py'


@pytest.mark.parametrize(
    'recipe, message',
    [
        (Recipe('w4a5'), "--recipe 'w4a5'.*w4a4.*did you mean"),
        (Recipe('w4a4', 'slow'), "--schedule 'slow'.*best, default, fast"),
        (Recipe('w4a4', calibration='no/such'), "--calibration 'no/such'"),
    ],
)
def test_the_error_for_an_unknown_name_lists_those_there_are(
    cfg, recipe, message
):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        compose(cfg, recipe)


@pytest.mark.parametrize('key', ['model', 'test_dataloader', 'test_evaluator'])
def test_the_error_names_what_the_config_lacks(cfg, key):
    cfg[key] = None
    with pytest.raises(ValueError, match=f'no `{key}`'):
        compose(cfg, Recipe('w4a4'))


@pytest.mark.parametrize('key', ['test_dataloader', 'test_evaluator'])
def test_what_an_evaluation_lacks_can_be_done_without(cfg, key):
    cfg[key] = None
    with pytest.raises(ValueError, match='add --no-eval'):
        compose(cfg, Recipe('w4a4'))


@pytest.mark.parametrize('lacks', ['nothing', 'test_evaluator', 'labels'])
def test_without_an_evaluation_there_are_no_test_images(cfg, lacks, tmp_path):
    if lacks == 'labels':  # As in a test set whose labels are kept secret.
        cfg.test_dataloader.dataset.update(ann_file='', with_label=False)
    cfg.pop(lacks, None)
    recipe = Recipe('w4a4', calibration=str(tmp_path), evaluate=False)
    composed = compose(cfg, recipe)
    assert composed.test_dataloader is composed.test_evaluator is None
    loader = composed.test_cfg.calibration.dataloader
    assert loader.dataset.pipeline == TEST_PIPELINE


def test_the_pipeline_is_that_of_validation_where_there_is_no_test(cfg):
    cfg.val_dataloader = cfg.pop('test_dataloader')
    composed = compose(cfg, Recipe('w4a4', evaluate=False))
    loader = composed.test_cfg.calibration.dataloader
    assert loader.dataset.pipeline == TEST_PIPELINE
    assert loader.dataset.data_prefix == 'train'
    cfg.val_dataloader = None
    with pytest.raises(ValueError, match='no `test_dataloader`.*pipeline'):
        compose(cfg, Recipe('w4a4', evaluate=False))


def test_without_training_images_the_error_asks_for_a_folder(cfg):
    cfg.train_dataloader = None
    with pytest.raises(ValueError, match='--calibration'):
        compose(cfg, Recipe('w4a4'))


def test_the_error_names_a_file_that_defines_no_bits(cfg, tmp_path):
    (tmp_path / 'empty.py').write_text('x = 1\n')
    with pytest.raises(ValueError, match='defines no `bits`'):
        compose(cfg, Recipe(str(tmp_path / 'empty.py')))


def test_an_option_for_what_no_eval_leaves_out_is_named(cfg, tmp_path):
    path = tmp_path / 'float.py'
    cfg.dump(path)
    recipe = Recipe('w4a4', evaluate=False)
    key = 'test_dataloader.dataset.data_root'
    with pytest.raises(ValueError, match='no `test_dataloader`.*--no-eval'):
        read_config(str(path), {key: 'elsewhere'}, recipe)
