"""Which detectors of mmdet can be quantized, saved and loaded?

    python benchmarks/detectors.py [--models FCOS DETR]

Configs of mmdet with few channels and random weights: every unit learns for
one iteration and is frozen, the model is saved and loaded, and outputs have to
be equal to the last bit. Prints one row for each: quantized layers, units,
what stays in float, and the seconds; or why it cannot be done.
"""

from __future__ import annotations

import argparse
import os.path as osp
import tempfile
import time
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Optional

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope
from torch import nn

import mmrazor_brecq
from mmrazor_brecq.functional import tensors
from mmrazor_brecq.graph import inputs_for, run_float

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
#: Units learn for one iteration.
SCHEDULE = dict(
    type='BlockReconstructor',
    iterations=1,
    batch_size=2,
    fit_images=2,
    objective=dict(type='FisherDiag', images=2),
)


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


def sweep(case: Case) -> dict[str, Any]:
    """Quantize, save and load one detector.

    Returns:
        dict: ``account``, ``units``, ``seconds``, and whether outputs after
        loading are ``equal``.
    """
    network = build(case)
    images = torch.randn(
        4, 3, case.size, case.size, generator=torch.Generator()
    )
    start = time.perf_counter()
    with DefaultScope.overwrite_default_scope('mmdet'):
        model, report = mmrazor_brecq.quantize(
            network,
            images,
            reconstructor=SCHEDULE,
            bit_overrides={case.in_float: None} if case.in_float else None,
        )
        with tempfile.TemporaryDirectory() as folder:
            path = osp.join(folder, 'quantized.pth')
            mmrazor_brecq.save(model, path)
            again = mmrazor_brecq.load(build(case), path)
        inputs = inputs_for(network, images[:2])
        with torch.no_grad():
            found, expected = (
                tensors(run_float(x.architecture, inputs))
                for x in (again, model)
            )
    return dict(
        account=report['account'],
        units=report['units'],
        seconds=time.perf_counter() - start,
        equal=len(found) == len(expected) > 0
        and all(map(torch.equal, found, expected)),
    )


def row(name: str) -> str:
    """Return one row of the table."""
    try:
        found = sweep(CASES[name])
    except Exception as error:
        return f'| {name} | | | | {type(error).__name__}: {error} |'
    account = found['account']
    kinds: dict[str, int] = {}
    for reason in account['left_float'].values():
        reason = reason.split(' (')[0]
        kinds[reason] = kinds.get(reason, 0) + 1
    note = '; '.join(f'{n} in float: {why}' for why, n in kinds.items())
    if not found['equal']:
        note = '; '.join(['other outputs after loading', note])
    return (
        f'| {name} | {account["quantized"]} | {len(found["units"])} '
        f'| {found["seconds"]:.0f} | {note} |'
    )


def main() -> None:
    """Sweep and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--models', nargs='+', default=list(CASES))
    args = parser.parse_args()
    MMLogger.get_current_instance().setLevel('ERROR')
    print(
        '| Detector | Layers | Units | Seconds | Notes |\n'
        '| :-- | --: | --: | --: | :-- |'
    )
    for name in args.models:
        print(row(name), flush=True)


if __name__ == '__main__':
    main()
