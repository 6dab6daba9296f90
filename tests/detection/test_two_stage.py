"""Detectors in two stages learn on regions of the float network."""

from __future__ import annotations

import copy
import pickle
from importlib import import_module

import pytest
import torch
from mmengine.config import ConfigDict

import mmrazor_brecq
from mmrazor_brecq.functional import tensors
from mmrazor_brecq.graph import inputs_for, run_float
from mmrazor_brecq.graph.regions import KEY, REGIONS

pytest.importorskip('mmdet', reason='the extra [detection] is missing')


def network(kind='StandardRoIHead', masks=False):
    """A Faster R-CNN, Mask R-CNN or Cascade R-CNN of a few channels."""
    import_module('mmrazor_brecq.mmcv_ext')
    import_module('mmdet.models')  # Then it can be imported.
    from mmdet.registry import MODELS

    bbox_head = dict(
        type='Shared2FCBBoxHead',
        in_channels=8,
        fc_out_channels=16,
        roi_feat_size=3,
        num_classes=3,
        reg_class_agnostic=kind == 'CascadeRoIHead',
    )

    def extractor(size):
        return dict(
            type='SingleRoIExtractor',
            roi_layer=dict(type='RoIAlign', output_size=size),
            out_channels=8,
            featmap_strides=[4, 8],
        )

    roi_head = dict(
        type=kind, bbox_roi_extractor=extractor(3), bbox_head=bbox_head
    )
    if kind == 'CascadeRoIHead':
        stages = dict(num_stages=2, stage_loss_weights=[1, 0.5])
        roi_head.update(stages, bbox_head=[bbox_head, bbox_head])
    if masks:
        head = dict(
            type='FCNMaskHead',
            num_convs=1,
            in_channels=8,
            conv_out_channels=8,
            num_classes=3,
        )
        roi_head.update(mask_roi_extractor=extractor(4), mask_head=head)
    coder = dict(
        type='DeltaXYWHBBoxCoder',
        target_means=[0.0] * 4,
        target_stds=[1.0] * 4,
    )
    anchors = dict(
        type='AnchorGenerator', scales=[4], ratios=[1.0], strides=[4, 8]
    )
    torch.manual_seed(0)
    return MODELS.build(
        ConfigDict(
            type='FasterRCNN',
            data_preprocessor=dict(type='mmdet.DetDataPreprocessor'),
            backbone=dict(
                type='ResNet',
                depth=18,
                base_channels=4,
                stem_channels=4,
                num_stages=2,
                strides=(1, 2),
                dilations=(1, 1),
                out_indices=(0, 1),
                norm_eval=False,
            ),
            neck=dict(
                type='FPN', in_channels=[4, 8], out_channels=8, num_outs=2
            ),
            rpn_head=dict(
                type='RPNHead',
                in_channels=8,
                feat_channels=8,
                anchor_generator=anchors,
                bbox_coder=coder,
            ),
            roi_head=roi_head,
            train_cfg=None,
            test_cfg=dict(
                rpn=dict(
                    nms_pre=100,
                    max_per_img=60,
                    nms=dict(type='nms', iou_threshold=0.7),
                    min_bbox_size=0,
                ),
                rcnn=dict(
                    score_thr=0.0,
                    nms=dict(type='nms', iou_threshold=0.5),
                    max_per_img=10,
                    mask_thr_binary=0.5,
                ),
            ),
        )
    ).eval()


def quantized(detector, images):
    schedule = dict(
        type='BlockReconstructor', iterations=2, batch_size=4, fit_images=4
    )
    return mmrazor_brecq.quantize(detector, images, reconstructor=schedule)


@pytest.mark.parametrize(
    ('kind', 'masks', 'units', 'layers'),
    [
        ('StandardRoIHead', True, 16, 23),
        ('CascadeRoIHead', False, 12, 25),
    ],
)
def test_every_layer_of_both_stages_is_of_a_unit(
    kind, masks, units, layers, tmp_path
):
    detector = network(kind, masks)
    before = copy.deepcopy(detector.state_dict())
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator())
    model, report = quantized(detector, images)
    assert type(detector).__mro__[1].__name__ == 'TwoStageDetector'
    assert all(
        torch.equal(x, before[k]) for k, x in detector.state_dict().items()
    )
    names = [unit['name'] for unit in report['units']]
    assert len(names) == units and 'rpn_head' in names
    assert report['account']['quantized'] == layers
    assert set(report['account']['left_float']) <= {
        'roi_head.mask_head.upsample'  # a transposed convolution
    }
    for unit in report['units']:
        assert 'Gaussian where an object is likely' in unit['objective']

    inputs = inputs_for(detector, images[:2])
    found = tensors(run_float(model.architecture, inputs))
    if masks:  # Those of all regions of both images.
        assert found[-1].shape[:2] == (2 * REGIONS, 3)
    mmrazor_brecq.save(model, tmp_path / 'quantized.pth')
    other = mmrazor_brecq.load(
        network(kind, masks), tmp_path / 'quantized.pth'
    )
    for x, y in zip(found, tensors(run_float(other.architecture, inputs))):
        assert torch.equal(x, y)
    # It detects as ever, and its class can be pickled.
    again = pickle.loads(pickle.dumps(model))
    results = again(inputs.images, inputs.data, mode='predict')
    assert results[0].pred_instances.bboxes.shape[1] == 4


def test_regions_are_as_many_whatever_the_first_stage_finds():
    detector = network()
    images = torch.randn(2, 3, 32, 32)
    few = copy.deepcopy(detector)
    few.rpn_head.test_cfg.max_per_img = 3
    none = copy.deepcopy(detector)
    none.rpn_head.test_cfg.min_bbox_size = 1000
    for kind, different in ((detector, None), (few, 3), (none, 1)):
        samples = inputs_for(kind, images)
        for sample in samples.data:
            boxes = sample.get(KEY).bboxes
            assert boxes.shape == (REGIONS, 4)
            assert different in (None, len(boxes.unique(dim=0)))
    assert boxes[0].tolist() == [0, 0, 32, 32]
