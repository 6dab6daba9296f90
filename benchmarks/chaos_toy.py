"""The toy network of chaos.py: its configs, images and weights."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import matplotlib.pyplot  # noqa: F401  Imported once, for all forks.
import mmengine.config.config as mmengine_config
import mmengine.runner.runner as mmengine_runner
import numpy as np
import scipy.optimize  # noqa: F401
import torch
from mmengine.registry import MODELS, init_default_scope

import mmrazor_brecq
from mmrazor_brecq.config.load import load_config
from mmrazor_brecq.engine import launch, search_run  # noqa: F401

CONFIG = """
_base_ = [
    'mmrazor_brecq::_base_/default_runtime.py',
    'mmrazor_brecq::_base_/bits/w4a4.py',
    'mmrazor_brecq::_base_/schedules/{schedule}.py',
    'mmrazor_brecq::_base_/mixed_precision/weights_and_activations.py',
]
loader = dict(
    batch_size=16,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='mmrazor_brecq.IDXDataset',
        data_root={folder!r},
        images='images',
        labels='labels',
        metainfo=dict(classes=list('0123456789')),
        pipeline=[dict(type='PackClsInputs')],
    ),
)
schedule = dict(_base_.pop('schedule'), iterations=4, batch_size=8)
schedule.update(autocast=None)
if 'refiner' in schedule:
    schedule['refiner'].update(iterations=4, batch_size=8)
model = dict(
    type='mmrazor_brecq.BRECQ',
    architecture=dict(
        type='ImageClassifier',
        backbone=dict(
            type='ResNet',
            depth=18,
            num_stages=2,
            strides=(1, 2),
            dilations=(1, 1),
            out_indices=(1,),
            stem_channels=8,
            base_channels=8,
        ),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=10, in_channels=16),
    ),
    quantization=_base_.pop('bits'),
    reconstructor=schedule,
    data_preprocessor=dict(
        type='ClsDataPreprocessor', mean=[128.0] * 3, std=[64.0] * 3
    ),
)
test_dataloader = loader
test_evaluator = dict(type='Accuracy', topk=(1,))
test_cfg = dict(
    type='mmrazor_brecq.PTQLoop',
    calibration=dict(num_images=32, dataloader=loader),
)
mixed_precision = dict(bits=[2, 4], num_images=16)
"""


def write_toy(folder: Path) -> dict[str, Any]:
    """Write configs, images, labels and weights; return the architecture."""
    folder.mkdir(parents=True)
    chance = np.random.default_rng(0)
    write_idx(folder / 'images', chance.integers(0, 256, (48, 16, 16)))
    write_idx(folder / 'labels', chance.integers(0, 10, 48))
    for schedule in ('default', 'best'):
        text = CONFIG.format(schedule=schedule, folder=str(folder))
        (folder / f'{schedule}.py').write_text(text)
    init_default_scope('mmcls')
    torch.manual_seed(0)
    cfg = load_config(str(folder / 'default.py'), {}, str(folder))
    network = MODELS.build(cfg.model.architecture)
    torch.save(network.state_dict(), folder / 'float.pth')
    return cfg.model.architecture


def write_idx(path: Path, values: np.ndarray) -> None:
    """Write bytes in the format of MNIST."""
    shape = np.array(values.shape, '>u4').tobytes()
    path.write_bytes(
        bytes([0, 0, 8, values.ndim]) + shape + values.astype('u1').tobytes()
    )


def warm(folder: Path, architecture: dict[str, Any]) -> None:
    """Do once what each fork would have to do again."""
    for schedule in ('default', 'best'):
        cfg = load_config(str(folder / f'{schedule}.py'), {}, str(folder))
        mmrazor_brecq.quantize(
            MODELS.build(architecture),
            torch.randn(32, 3, 16, 16),
            reconstructor=cfg.model.reconstructor.to_dict(),
        )
    found = mmengine_runner.collect_env()
    mmengine_runner.collect_env = lambda: found
    # It only makes what a log says of the config prettier, in a second.
    mmengine_config.FormatCode = lambda text, **kwargs: (text, True)
    gc.collect()
    gc.freeze()  # Or each collection of a fork copies all memory.
