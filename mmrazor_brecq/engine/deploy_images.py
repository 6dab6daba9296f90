"""Images for an export: those that calibrate, and those of the proof."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Optional

import torch
from mmengine.config import Config
from mmengine.logging import print_log
from torch import Tensor

from ..algorithms import BRECQ
from .loaders import (
    CALIBRATION,
    MAX_UNREADABLE,
    TEST,
    ReadableBatches,
    build_dataloader,
)

if TYPE_CHECKING:
    from .deploy import Request


class Source(NamedTuple):
    """Where images come from.

    Attributes:
        loader (dict): Config of their data loader.
        key (str): Its key in the config of the run.
        max_unreadable (float, optional): Fraction of the images, from 0 to
            1, that may be unreadable and are left out. Without it an
            unreadable image is an error.
    """

    loader: Mapping[str, Any]
    key: str = TEST
    max_unreadable: Optional[float] = None


def calibration_source(cfg: Config) -> Source:
    """Return where the calibration images of a config come from."""
    calibration = (cfg.get('test_cfg') or {}).get('calibration') or {}
    loader = calibration.get('dataloader')
    if loader is None:
        raise ValueError(
            f'{CALIBRATION} is missing: the export calibrates the scales that '
            'the target needs in addition to those of the checkpoint; use the '
            'config of the run'
        )
    most = calibration.get('max_unreadable', MAX_UNREADABLE)
    return Source(loader, CALIBRATION, most)


def proof_source(cfg: Config, calibration: Source) -> Source:
    """Return where the images of a proof come from: test images, if any."""
    if cfg.get('test_dataloader'):
        return Source(cfg.test_dataloader)
    print_log(
        'The config has no test images: file and network are compared on '
        'calibration images',
        'current',
    )
    return calibration


def load_images(
    model: BRECQ, source: Source, count: int, request: Request
) -> Iterator[tuple[Tensor, Tensor, Optional[list[int]]]]:
    """Yield images as inputs of the network and as inputs of the file.

    Args:
        model (BRECQ): The model. Its preprocessor is applied.
        source (Source): Where the images come from.
        count (int): Number of images.
        request (Request): Options of the export.

    Yields:
        tuple: Images N x C x H x W as the network takes them, the same as
        the file takes them, and their classes, None if they are unknown.
    """
    loader = dict(source.loader)
    if request.batch != 'dynamic':
        size = int(request.batch)
        loader.update(batch_size=size, drop_last=True)
        count = max(count // size, 1) * size
    batches: Any = build_dataloader(loader, key=source.key)
    if source.max_unreadable is not None:
        batches = ReadableBatches(batches, count, source.max_unreadable)
    for data in batches:
        with torch.no_grad():
            inputs, data = file_inputs(model, data, request.preprocess)
        images = data['inputs']
        if request.batch not in ('dynamic', len(images)):
            continue  # Some of its images cannot be read.
        labels = [
            int(sample.gt_label.label)
            for sample in data.get('data_samples') or []
            if 'gt_label' in sample
        ]
        left = min(count, len(images))
        known = len(labels) == len(images)
        yield images[:left], inputs[:left], labels[:left] if known else None
        count -= left
        if count <= 0:
            return


def file_inputs(
    model: BRECQ, data: dict[str, Any], preprocess: bool
) -> tuple[Tensor, dict[str, Any]]:
    """Return images as inputs of the file, and as those of the network.

    Args:
        model (BRECQ): The model. Its preprocessor is applied.
        data (dict): A collated batch of raw images, C x H x W each.
        preprocess (bool): Whether the file normalizes the images itself.

    Returns:
        tuple: N x C x H x W preprocessed images, or N x H x W x 3 images,
        ``uint8`` and RGB; and the preprocessed batch.
    """
    ready = model.data_preprocessor(data, False)
    ready['inputs'] = images = ready['inputs'].cpu()
    if not preprocess:
        return images, ready
    height, width = images.shape[-2:]
    if any(x.shape[-2:] != (height, width) for x in data['inputs']):
        raise ValueError(
            '--with-preprocess (`preprocess=True`): the preprocessor of the '
            'model pads normalized images, which no file of raw images can; '
            'give the pipeline of `test_dataloader` a `Pad(size=(W, H))`'
        )
    raw = torch.stack(list(data['inputs'])).to(torch.uint8)
    return raw.permute(0, 2, 3, 1).flip(-1).contiguous(), ready


def resizing(
    cfg: Config, preprocessor: Any = None
) -> Optional[dict[str, Any]]:
    """Return how the pipeline of a config's test images resizes them.

    Without test images it is that of the calibration images.

    Args:
        cfg (Config): The config.
        preprocessor (nn.Module, optional): Of the model; it may pad.

    Returns:
        dict: ``size`` (height and width) in pixels, or ``edge`` and
        ``crop``; None if the pipeline does something else. With
        ``keep_ratio`` the size is the most, and ``pad`` the raw value, RGB,
        of what is added on the right and below.
    """
    loader = cfg.get('test_dataloader') or calibration_source(cfg).loader
    dataset = loader.get('dataset') or {}
    known: dict[str, Any] = {}
    for step in dataset.get('pipeline') or []:
        kind = str(step['type']).split('.')[-1]
        if kind == 'Resize':
            scale = step['scale']
            pair = [scale, scale] if isinstance(scale, int) else list(scale)
            known['size'] = pair[::-1]  # A config has the width first.
            if step.get('keep_ratio'):
                known.update(keep_ratio=True, pad=_padding(preprocessor))
        elif kind == 'Pad' and 'keep_ratio' in known:
            value = step.get('pad_val', 0)
            value = value.get('img', 0) if isinstance(value, dict) else value
            known['pad'] = _triple(value)[::-1]  # Images are read as BGR.
        elif kind == 'ResizeEdge':
            known['edge'] = step['scale']
        elif kind == 'CenterCrop':
            known['crop'] = step['crop_size']
    return json.loads(json.dumps(known)) or None


def _padding(preprocessor: Any) -> list[float]:
    """Return the raw value, RGB, of what a preprocessor pads images with."""
    from ..export.trace import is_rgb

    value = getattr(preprocessor, 'pad_value', 0)
    mean = getattr(preprocessor, 'mean', torch.zeros(3)).flatten()
    std = getattr(preprocessor, 'std', torch.ones(3)).flatten()
    raw = _triple((mean.cpu() + std.cpu() * value).tolist())
    return raw if is_rgb(preprocessor) else raw[::-1]


def _triple(value: Any) -> list[float]:
    """Return a value for each of three channels."""
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    return [float(x) for x in (values * 3)[:3]]
