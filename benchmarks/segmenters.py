"""Which segmenters of mmsegmentation can be quantized, saved and loaded?

    python benchmarks/segmenters.py [--models FCN SegFormer]

Configs of its zoo, as they are, with random weights and small images. Prints
one row for each: quantized layers, units, seconds, and what stays in float;
or why it cannot be done.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from architectures import settle
from mmengine.config import Config
from mmengine.registry import MODELS
from sweep import main, sweep
from torch import nn

import mmrazor_brecq.mmcv_ext  # noqa: F401
from mmrazor_brecq.config.read import read_file


class Case(NamedTuple):
    """A network of a zoo.

    Attributes:
        config (str): Path of its config in the zoo.
        size (int): Side of the images, in pixels.
    """

    config: str
    size: int = 64


CASES = {
    'FCN': Case('fcn/fcn_r18-d8_4xb2-80k_cityscapes-512x1024.py'),
    'PSPNet': Case('pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py'),
    'DeepLabV3': Case(
        'deeplabv3/deeplabv3_r18-d8_4xb2-80k_cityscapes-512x1024.py'
    ),
    'DeepLabV3+': Case(
        'deeplabv3plus/deeplabv3plus_r50-d8_4xb2-40k_cityscapes-512x1024.py'
    ),
    'UNet': Case('unet/unet-s5-d16_fcn_4xb4-160k_cityscapes-512x1024.py'),
    'LR-ASPP': Case(
        'mobilenet_v3/mobilenet-v3-d8_lraspp_4xb4-320k_cityscapes-512x1024.py',
        size=400,
    ),
    'BiSeNetV2': Case(
        'bisenetv2/bisenetv2_fcn_4xb4-160k_cityscapes-1024x1024.py', size=128
    ),
    'SegFormer': Case(
        'segformer/segformer_mit-b0_8xb1-160k_cityscapes-1024x1024.py'
    ),
    'Fast-SCNN': Case(
        'fastscnn/fast_scnn_8xb4-160k_cityscapes-512x1024.py', size=128
    ),
    'HRNet, FCN': Case('hrnet/fcn_hr18s_4xb2-40k_cityscapes-512x1024.py'),
    'OCRNet': Case('ocrnet/ocrnet_hr18s_4xb2-40k_cityscapes-512x1024.py'),
    'UPerNet, Swin': Case(
        'swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k'
        '_ade20k-512x512.py',
    ),
    'STDC': Case('stdc/stdc1_4xb12-80k_cityscapes-512x1024.py', size=128),
    'PIDNet': Case(
        'pidnet/pidnet-s_2xb6-120k_1024x1024-cityscapes.py', size=128
    ),
    'SegNeXt': Case(
        'segnext/segnext_mscan-t_1xb16-adamw-160k_ade20k-512x512.py'
    ),
    'PointRend': Case(
        'point_rend/pointrend_r50_4xb2-80k_cityscapes-512x1024.py'
    ),
}


def build(case: Case) -> nn.Module:
    """Return the network of a case, with random weights, in evaluation."""
    model = read_file(f'mmseg::{case.config}').model
    for part in _parts(model):
        part.pop('pretrained', None)
        part.pop('init_cfg', None)
        if part.get('type') == 'SyncBN':
            part['type'] = 'BN'
    torch.manual_seed(0)
    network = MODELS.build(model)
    settle(network, torch.randn(2, 3, case.size, case.size))
    network.train(False)
    return network


def _parts(config: Any) -> Iterator[Config]:
    """Yield all dicts within a config."""
    if isinstance(config, dict):
        yield config
        config = list(config.values())
    if isinstance(config, (list, tuple)):
        for value in config:
            yield from _parts(value)


def measure(name: str) -> dict[str, Any]:
    """Return what is found of a case."""
    case = CASES[name]
    return sweep(lambda: build(case), 'mmseg', case.size)


if __name__ == '__main__':
    main(__doc__.split('\n')[0], list(CASES), measure)
