"""Which detectors of mmdet can be quantized, saved and loaded?

    python benchmarks/detectors.py [--models FCOS DETR]

Configs of mmdet with few channels and random weights: every unit learns for
one iteration and is frozen, the model is saved and loaded, and outputs have to
be equal to the last bit. Prints one row for each: quantized layers, units,
what stays in float, and the seconds; or why it cannot be done.
"""

from __future__ import annotations

import os.path as osp
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Optional

import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from sweep import main, sweep
from torch import nn

#: Channels of a narrow network, by those of the config.
NARROW = {64: 16, 80: 16, 128: 16, 256: 32, 1024: 64, 2048: 64}
#: Keys of a head or neck that have channels.
CHANNELS = (
    *('in_channels', 'out_channels', 'feat_channels', 'conv_out_channels'),
    *('fc_out_channels', 'embed_dims', 'feedforward_channels', 'num_feats'),
)
#: A ResNet of 8 channels, and what follows it.
RESNET = dict(
    backbone=dict(
        depth=18,
        base_channels=8,
        stem_channels=8,
        norm_cfg=dict(type='BN'),
        norm_eval=False,
        style='pytorch',
    )
)
STAGES = [8, 16, 32, 64]
FPN = dict(RESNET, neck=dict(in_channels=STAGES))
#: A group of four channels.
GROUPS = dict(type='GN', num_groups=8)
GROUPED = dict(FPN, bbox_head=dict(norm_cfg=GROUPS))


@dataclass(frozen=True)
class Case:
    """One detector.

    Attributes:
        config (str): Path of the config, relative to those of mmdet.
        changes (dict): What of its model is changed.
        narrow (bool): Whether heads and necks have few channels, too.
        size (int): Side of the images, in pixels.
        in_float (str, optional): Pattern of layers that stay in float.
    """

    config: str
    changes: dict[str, Any] = field(default_factory=lambda: FPN)
    narrow: bool = True
    size: int = 64
    in_float: Optional[str] = None


CASES = {
    'RetinaNet': Case('retinanet/retinanet_r50_fpn_1x_coco.py'),
    'FCOS': Case('fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py', GROUPED),
    'ATSS': Case('atss/atss_r50_fpn_1x_coco.py', GROUPED),
    'GFL': Case('gfl/gfl_r50_fpn_1x_coco.py', GROUPED),
    'RTMDet': Case(
        'rtmdet/rtmdet_tiny_8xb32-300e_coco.py',
        dict(
            backbone=dict(widen_factor=0.125),
            neck=dict(in_channels=[32, 64, 128], out_channels=16),
            bbox_head=dict(in_channels=16, feat_channels=16),
        ),
        narrow=False,
    ),
    'YOLOX': Case(
        'yolox/yolox_nano_8xb8-300e_coco.py',
        dict(
            backbone=dict(widen_factor=0.125),
            neck=dict(in_channels=[32, 64, 128], out_channels=16),
            bbox_head=dict(in_channels=16, feat_channels=16),
        ),
        narrow=False,
    ),
    'SSDLite': Case(
        'ssd/ssdlite_mobilenetv2-scratch_8xb24-600e_coco.py',
        {},
        narrow=False,
        size=96,
    ),
    'YOLOv3': Case(
        'yolo/yolov3_mobilenetv2_8xb24-320-300e_coco.py', {}, narrow=False
    ),
    'CenterNet': Case(
        'centernet/centernet_r18_8xb16-crop512-140e_coco.py',
        dict(
            RESNET, neck=dict(in_channels=64, num_deconv_filters=[32, 16, 16])
        ),
    ),
    'Faster R-CNN': Case('faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'),
    'Mask R-CNN': Case('mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'),
    'Cascade R-CNN': Case('cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py'),
    'Cascade Mask R-CNN': Case(
        'cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py'
    ),
    'DETR': Case(
        'detr/detr_r50_8xb2-150e_coco.py',
        dict(
            RESNET,
            neck=dict(in_channels=STAGES[-1:]),
            num_queries=10,
            encoder=dict(num_layers=2),
            decoder=dict(num_layers=2),
        ),
    ),
    'Conditional DETR': Case(
        'conditional_detr/conditional-detr_r50_8xb2-50e_coco.py',
        dict(
            RESNET,
            neck=dict(in_channels=STAGES[-1:]),
            num_queries=10,
            encoder=dict(num_layers=1),
            decoder=dict(num_layers=1),
        ),
        narrow=False,  # Its encoding of positions has 256 channels.
        in_float='bbox_head.*',
    ),
    'Deformable DETR': Case(
        'deformable_detr/deformable-detr_r50_16xb2-50e_coco.py',
        dict(
            RESNET,
            neck=dict(in_channels=STAGES[1:], norm_cfg=GROUPS),
            bbox_head=dict(embed_dims=32),
        ),
        in_float='bbox_head.*',
    ),
    'Faster R-CNN with DCN': Case(
        'dcn/faster-rcnn_r50-dconv-c3-c5_fpn_1x_coco.py',
        dict(
            backbone=dict(RESNET['backbone'], depth=50),
            neck=dict(in_channels=[32, 64, 128, 256]),
        ),
    ),
}


def build(case: Case) -> nn.Module:
    """Return the network of a case, with random weights, in evaluation."""
    import_module('mmrazor_brecq.mmcv_ext')
    import_module('mmdet.models')
    from mmdet.registry import MODELS

    root = osp.dirname(str(find_spec('mmdet').origin))
    cfg = Config.fromfile(osp.join(root, '.mim', 'configs', case.config))
    model = cfg.model
    if case.narrow:
        for part in ('neck', 'rpn_head', 'roi_head', 'bbox_head') + (
            'encoder',
            'decoder',
            'positional_encoding',
        ):
            _make_narrow(model.get(part))
    changed = Config(dict(model=model))
    changed.merge_from_dict({'model': case.changes})
    model = changed.model
    model.backbone.init_cfg = None
    model.backbone.pop('frozen_stages', None)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmdet'):
        network = MODELS.build(model)
    network.init_weights()
    network.train(False)
    return network


def _make_narrow(node: Any) -> None:
    """Lower the numbers of channels in a config, in place."""
    if isinstance(node, (list, tuple)):
        for child in node:
            _make_narrow(child)
    if not isinstance(node, dict):
        return
    for key, value in node.items():
        if key in CHANNELS and isinstance(value, int):
            node[key] = NARROW.get(value, value)
        elif not isinstance(value, (int, str)):
            _make_narrow(value)


def measure(name: str) -> dict[str, Any]:
    """Return what :func:`sweep` finds of a case."""
    case = CASES[name]
    floats = {case.in_float: None} if case.in_float else None
    return sweep(lambda: build(case), 'mmdet', case.size, bit_overrides=floats)


if __name__ == '__main__':
    main(__doc__.split('\n')[0], list(CASES), measure)
