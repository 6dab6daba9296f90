"""Detectors are exported with their maps, and with boxes."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip('mmdet', reason='the extra [detection] is missing')
pytest.importorskip('onnx')
ort = pytest.importorskip('onnxruntime')

from mmengine.config import Config, ConfigDict  # noqa: E402
from mmengine.registry import init_default_scope  # noqa: E402
from PIL import Image  # noqa: E402
from torchvision.ops import nms  # noqa: E402

import mmrazor_brecq.mmcv_ext  # noqa: E402, F401
from mmrazor_brecq.export import decoder_of  # noqa: E402
from mmrazor_brecq.functional import tensors  # noqa: E402
from mmrazor_brecq.graph import run_float  # noqa: E402

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / 'configs/detection/retinanet_fashion-detection.py'
CHECKPOINT = ROOT / 'demo/retinanet_fashion-detection.pth'
CLASSES, SIDE = 3, 64
POINTS = dict(type='MlvlPointGenerator', offset=0, strides=[8, 16])
ANCHORS = dict(
    type='AnchorGenerator',
    ratios=[1.0],
    octave_base_scale=8,
    scales_per_octave=1,
    strides=[8, 16],
)
DISTANCES = dict(type='DistancePointBBoxCoder')
NORM = dict(type='BN')
#: Heads of each kind that can be exported, on two levels.
HEADS = dict(
    retina=dict(
        type='RetinaHead',
        stacked_convs=1,
        anchor_generator=dict(ANCHORS, scales_per_octave=2),
    ),
    softmax=dict(
        type='RetinaHead',
        stacked_convs=1,
        anchor_generator=ANCHORS,
        loss_cls=dict(type='CrossEntropyLoss'),
    ),
    fcos=dict(
        type='FCOSHead', stacked_convs=1, strides=[8, 16], norm_cfg=NORM
    ),
    atss=dict(
        type='ATSSHead',
        stacked_convs=1,
        norm_cfg=NORM,
        anchor_generator=ANCHORS,
    ),
    gfl=dict(
        type='GFLHead',
        stacked_convs=1,
        norm_cfg=NORM,
        anchor_generator=ANCHORS,
        reg_max=4,
    ),
    rtmdet=dict(
        type='RTMDetHead',
        stacked_convs=1,
        with_objectness=False,
        norm_cfg=NORM,
        anchor_generator=POINTS,
        bbox_coder=DISTANCES,
    ),
    yolox=dict(type='YOLOXHead', stacked_convs=1, strides=[8, 16]),
)


def detector(head, **test_cfg):
    """A small detector with random weights whose scores are spread."""
    from mmdet.registry import MODELS

    init_default_scope('mmdet')
    torch.manual_seed(0)
    kind = dict(YOLOXHead='YOLOX').get(head['type'], 'SingleStageDetector')
    network = MODELS.build(
        ConfigDict(
            type=kind,
            data_preprocessor=dict(type='DetDataPreprocessor'),
            backbone=dict(
                type='ResNet',
                depth=18,
                base_channels=4,
                stem_channels=4,
                num_stages=3,
                strides=(1, 2, 2),
                dilations=(1, 1, 1),
                out_indices=(1, 2),
                norm_eval=False,
            ),
            neck=dict(
                type='FPN', in_channels=[8, 16], out_channels=16, num_outs=2
            ),
            bbox_head=dict(
                head, num_classes=CLASSES, in_channels=16, feat_channels=16
            ),
            test_cfg=dict(
                dict(
                    nms_pre=50,
                    score_thr=0.02,
                    min_bbox_size=0,
                    nms=dict(type='nms', iou_threshold=0.5),
                    max_per_img=30,
                ),
                **test_cfg,
            ),
        )
    )
    network.train()
    with torch.no_grad():
        for _ in range(3):
            run_float(network, pictures(8))
        for parameter in network.bbox_head.parameters():
            if parameter.dim() == 4:
                parameter.normal_(0, 0.15)
    return network.eval()


def pictures(count):
    torch.manual_seed(1)
    return torch.randn(count, 3, SIDE, SIDE)


def boxes_of_torch(network, images):
    """What `predict` finds, in pixels of the input."""
    from mmdet.structures import DetDataSample

    about = dict(
        img_shape=(SIDE, SIDE),
        ori_shape=(SIDE, SIDE),
        batch_input_shape=(SIDE, SIDE),
        scale_factor=(1.0, 1.0),
    )
    samples = [DetDataSample(metainfo=dict(about)) for _ in images]
    with torch.no_grad():
        found = network(images, samples, mode='predict')
    return [sample.pred_instances for sample in found]


def maps_of(network, images):
    with torch.no_grad():
        return tensors(run_float(network, images))


def suppressed(network, images):
    """What is left of the candidates: boxes, scores, labels of each image."""
    maps = maps_of(network, images)
    decoder = decoder_of(network)(network.bbox_head, maps, (SIDE, SIDE))
    with torch.no_grad():
        found = decoder(*maps)
    for boxes, scores, labels, apart in zip(*found):
        keep = nms(apart, scores, decoder.iou_threshold)
        keep = keep[scores[keep] > 0][: decoder.most]
        yield boxes[keep], scores[keep], labels[keep]


def check_equal(known, boxes, scores, labels):
    assert len(known) == len(scores) > 3
    assert np.allclose(scores, known.scores, atol=1e-5)
    # Boxes of the same score have no order.
    assert np.mean(np.asarray(labels) == known.labels.numpy()) > 0.95
    assert np.isclose(boxes, known.bboxes, atol=0.01).mean() > 0.95


@pytest.mark.parametrize('kind', HEADS)
def test_candidates_are_those_of_the_head(kind):
    network, images = detector(HEADS[kind]), pictures(3)
    found = suppressed(network, images)
    for known, image in zip(boxes_of_torch(network, images), found):
        check_equal(known, *image)


def test_classes_suppress_each_other_only_if_they_shall():
    """One box for all classes, or one for each."""
    counts = []
    for agnostic in False, True:
        cfg = dict(type='nms', iou_threshold=0.5, class_agnostic=agnostic)
        network = detector(HEADS['retina'], nms=cfg, max_per_img=200)
        images = pictures(2)
        counts.append([len(x[1]) for x in suppressed(network, images)])
        found = boxes_of_torch(network, images)
        assert counts[-1] == [len(x) for x in found]
    assert all(one < each for each, one in zip(*counts))


def test_a_file_suppresses_by_itself():
    """For any number of images, also one without a box."""
    from mmrazor_brecq.export.names import output_names
    from mmrazor_brecq.export.nms import OUTPUTS, decoding

    network, images = detector(HEADS['yolox']), pictures(3)
    names = output_names(network, run_float(network, images))
    assert names == [
        f'{name}_{level}'
        for name in ('cls_score', 'bbox_pred', 'objectness')
        for level in range(2)
    ]
    model = decoding(network, images[:1], names, 'dynamic')
    session = ort.InferenceSession(model.SerializeToString())
    maps = [x.numpy() for x in maps_of(network, images)]
    found = session.run(OUTPUTS, dict(zip(names, maps)))
    for known, boxes, scores, labels in zip(
        boxes_of_torch(network, images), *found
    ):
        left = scores > 0
        assert (labels[~left] == -1).all() and not boxes[~left].any()
        check_equal(
            known[: left.sum()], boxes[left], scores[left], labels[left]
        )
    none = [x - 50 if 'obj' in n else x for n, x in zip(names, maps)]
    _, scores, labels = session.run(OUTPUTS, dict(zip(names, none)))
    assert not scores.any() and (labels == -1).all()


def test_what_cannot_be_decoded_in_a_file_is_refused_by_name():
    from mmdet.models import RetinaHead

    with pytest.raises(ValueError, match='soft_nms.*expected a dense head'):
        decoder_of(detector(HEADS['retina'], nms=dict(type='soft_nms')))
    network = detector(HEADS['retina'])

    class OwnHead(RetinaHead):
        def _predict_by_feat_single(self, *args, **kwargs):
            raise NotImplementedError

    network.bbox_head.__class__ = OwnHead
    with pytest.raises(ValueError, match='OwnHead, the head of .* its own'):
        decoder_of(network)
    with pytest.raises(ValueError, match='Linear is no single-stage'):
        decoder_of(torch.nn.Linear(2, 2))


def test_the_head_is_found_whose_outputs_a_file_has():
    """Prepared, a detector that runs ``head.forward`` calls its head."""
    from mmrazor_brecq.algorithms import BRECQ
    from mmrazor_brecq.engine.deploy_metric import _head_of

    model, images = BRECQ(detector(HEADS['retina'])).eval(), pictures(1)
    head = model.architecture.bbox_head
    assert _head_of(model.architecture, images) is head
    model.prepare(images)
    assert _head_of(model.architecture, images) is head


@pytest.mark.slow
def test_the_demo_detector_is_exported_and_draws_its_boxes(
    detection_set, tmp_path, monkeypatch, capsys
):
    """From the tool to the picture, with the metric in the proof."""
    from mmrazor_brecq.engine.deploy import Request, export
    from mmrazor_brecq.engine.launch import load_config, ptq

    monkeypatch.setenv('MMRAZOR_BRECQ_DETECTION', str(detection_set))
    options = {
        'test_dataloader.dataset.ann_file': 'few.json',
        'test_evaluator.ann_file': f'{detection_set}/few.json',
        'model.reconstructor.iterations': 1,
    }
    from mmrazor_brecq.config.recipe import Recipe

    cfg = load_config(
        str(CONFIG),
        options,
        str(tmp_path),
        recipe=Recipe('w8a8', 'fast', str(detection_set / 'calibration'), 32),
    )
    metrics = ptq(Config(cfg.to_dict()), str(CHECKPOINT))
    path = str(tmp_path / 'boxes.onnx')
    report = export(
        cfg,
        str(tmp_path / 'quantized.pth'),
        Request(output=path, postprocess=True),
    )
    assert [x['agreement'] for x in report['matches']] == [None] * len(
        report['matches']
    )
    assert all(layer['within'] == 1 for layer in report['layers'])
    assert report['operators']['QLinearConv'] > 20
    assert report['boxes']['equal'] >= 0.98 * report['boxes']['boxes'] > 50
    assert report['metric']['name'] == 'coco/bbox_mAP'
    assert report['metric']['torch'] == metrics['coco/bbox_mAP']
    assert abs(report['metric']['file'] - report['metric']['torch']) < 0.02

    image = str(tmp_path / 'image.png')
    Image.open(detection_set / 'test/0000.png').resize((192, 192)).save(image)
    monkeypatch.syspath_prepend(str(ROOT / 'demo'))

    def draw(*args):
        monkeypatch.setattr(
            sys, 'argv', ['detect.py', image, '--model', path, *args]
        )
        with pytest.raises(SystemExit) as info:
            runpy.run_path(str(ROOT / 'demo/detect.py'), run_name='__main__')
        return info.value.code

    capsys.readouterr()
    assert draw() == 0
    drawing = tmp_path / 'image_boxes.png'
    assert Image.open(drawing).size == (192, 192)
    told = capsys.readouterr().out
    known = json.loads((detection_set / 'few.json').read_text())
    true = [x['bbox'] for x in known['annotations'] if x['image_id'] == 0]
    lines = [x.split() for x in told.splitlines() if '%' in x]
    found = np.array([[float(x) for x in line[-4:]] for line in lines]) / 2
    hits = [
        np.abs(found - [x, y, x + w, y + h]).max(1).min() < 4
        for x, y, w, h in true
    ]
    assert sum(hits) >= len(true) / 2
    assert 'is there already: add --force' in draw()
    assert draw('--force', '--score', '1') == 0
