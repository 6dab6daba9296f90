"""Mistakes in what a detector is given, and the errors that answer them."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData

from mmrazor_brecq.algorithms import BRECQ
from mmrazor_brecq.checkpoint import load_float
from mmrazor_brecq.config.load import check_data, load_config
from mmrazor_brecq.config.recipe import Recipe
from mmrazor_brecq.engine.data_mistakes import check_measured, measuring

pytest.importorskip('mmdet', reason='the extra [detection] is missing')

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / 'configs/detection/retinanet_fashion-detection.py'
CHECKPOINT = ROOT / 'demo/retinanet_fashion-detection.pth'


@pytest.fixture(autouse=True)
def mmdet():
    """mmdet beside mmcv-lite, and its registries."""
    import_module('mmrazor_brecq.mmcv_ext')
    import_module('mmdet.models')
    import_module('mmdet.evaluation')
    with DefaultScope.overwrite_default_scope('mmdet'):
        yield


def test_a_checkpoint_of_other_classes_is_refused_by_its_tensors():
    architecture = Config.fromfile(CONFIG).model
    architecture.bbox_head.num_classes = 7
    model = BRECQ(architecture)
    with pytest.raises(ValueError, match=r'bbox_head.retina_cls.weight'):
        load_float(model, str(CHECKPOINT))


def test_without_evaluation_the_test_set_needs_no_annotations(tmp_path):
    options = {
        'test_dataloader.dataset.ann_file': 'not_there.json',
        'test_evaluator.ann_file': 'not_there.json',
    }
    path = str(tmp_path / 'own.py')
    own = Config.fromfile(CONFIG)
    own.merge_from_dict(options)
    own.dump(path)
    parts = 'test_dataloader', 'test_cfg.calibration.dataloader'
    for evaluate in (False, True):
        recipe = Recipe('w8a8', 'fast', str(tmp_path), 32, evaluate)
        cfg = load_config(path, {}, str(tmp_path), recipe=recipe)
        if not evaluate:
            assert cfg.test_dataloader is None and cfg.test_evaluator is None
            check_data(cfg, parts)
            continue
        with pytest.raises(FileNotFoundError, match='test_dataloader'):
            check_data(cfg, parts)


def measured(folder, boxes, categories=('Trouser', 'Bag')):
    """The metrics of one image, on which a box of the second class is found.

    Args:
        folder (Path): Where the annotations are written.
        boxes (list): Annotated boxes of the first class.
        categories (tuple[str]): Classes of the annotations.
    """
    content = dict(
        images=[dict(id=0, file_name='0.png', width=96, height=96)],
        annotations=[
            dict(
                id=i, image_id=0, category_id=0, bbox=box, area=100, iscrowd=0
            )
            for i, box in enumerate(boxes)
        ],
        categories=[dict(id=i, name=c) for i, c in enumerate(categories)],
    )
    path = folder / 'test.json'
    path.write_text(json.dumps(content))
    evaluator = Evaluator(dict(type='CocoMetric', ann_file=str(path)))
    evaluator.dataset_meta = dict(classes=('Trouser', 'Bag'))
    found = InstanceData(
        bboxes=torch.tensor([[10.0, 10, 30, 30]]),
        scores=torch.ones(1),
        labels=torch.tensor([1]),
    )
    with measuring():
        evaluator.process(
            [dict(pred_instances=found, img_id=0, ori_shape=(96, 96))]
        )
        return evaluator.evaluate(1)


def test_annotations_of_other_classes_are_named(tmp_path):
    with pytest.raises(ValueError, match='classes of its annotations') as info:
        measured(tmp_path, [[10, 10, 20, 20]], ('Trouser',))
    for word in ('IndexError', '`metainfo`', 'test_dataloader', '--no-eval'):
        assert word in str(info.value)


def test_a_test_set_without_boxes_is_named(tmp_path):
    with pytest.raises(ValueError, match='no labels') as info:
        check_measured(measured(tmp_path, []))
    for word in ('coco/bbox_mAP', '-1', 'test_dataloader', '--no-eval'):
        assert word in str(info.value)


@pytest.mark.parametrize(
    'box', [[-20, -30, 40, 40], [90, 90, 50, 50], [200, 200, 9, 9]]
)
def test_boxes_outside_of_the_image_are_measured(box, tmp_path):
    check_measured(measured(tmp_path, [box]))


@pytest.mark.parametrize(
    'metrics',
    [
        {},
        {'top1': 0.0},
        {'mAP': 0.0, 'mAP_s': -1.0},
        {'a': 1.0, 'b': float('nan')},
    ],
)
def test_numbers_that_say_something_pass(metrics):
    check_measured(metrics)


@pytest.mark.parametrize('value', [-1.0, float('nan')])
def test_numbers_that_say_nothing_are_refused(value):
    with pytest.raises(ValueError, match='no labels'):
        check_measured({'a': value, 'b': -1.0})
