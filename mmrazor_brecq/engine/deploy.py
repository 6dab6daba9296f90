"""From a config and a quantized checkpoint to a file that is proven."""

from __future__ import annotations

import copy
import json
import logging
import os.path as osp
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Optional

import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import print_log
from torch import Tensor

from .._requirements import require
from ..algorithms import BRECQ
from ..checkpoint import (
    check_quantized,
    load_quantized,
    save_json,
    write_whole,
)
from ..export import build_target
from ..report import export_table
from ..validation import Batch, Count, Fraction, validated
from .launch import build_model
from .loaders import MAX_UNREADABLE, ReadableBatches, build_dataloader

#: What the export cannot do without.
PACKAGES = ('onnx', 'onnxscript', 'onnx_ir', 'onnxruntime')


@validated
@dataclass
class Request:
    """What a user asks for.

    Args:
        target (str): Name of a target.
        pack (bool): Whether weights of four bits and fewer are packed.
        batch (str | int): ``'dynamic'``, or the number of images.
        output (str, optional): The file; by default beside the checkpoint.
        force (bool): Whether to overwrite it.
        preprocess (bool): Whether the file normalises the images itself.
        verify (bool): Whether to prove it.
        images (int): How many to prove it on.
        least_agreement (float): Least share of images of the same class.
        least_exact (float): Least share of equal integers in every layer.
        least_within (float): Least share of those within one step.
    """

    target: str = 'onnxruntime'
    pack: bool = False
    batch: Batch = 'dynamic'
    output: Optional[str] = None
    force: bool = False
    preprocess: bool = False
    verify: bool = True
    images: Count = 1024
    least_agreement: Fraction = 0.9
    least_exact: Fraction = 0.97
    least_within: Fraction = 0.9999


def export(cfg: Config, checkpoint: str, request: Request) -> dict[str, Any]:
    """Write the quantized network of a run as a file of ONNX.

    Args:
        cfg (Config): That of the run, from :func:`load_config`.
        checkpoint (str): What it wrote.
        request (Request): What is wanted.

    Returns:
        dict: What is known of the file; empty if nothing was proven.

    Raises:
        FileExistsError: If the file is there, and not to be overwritten.
        ImportError: If a package is missing.
        ValueError: If the checkpoint is none of this config, the target
            cannot have it, or the file is not what it was made from; then
            nothing is written.
    """
    path = request.output or osp.splitext(checkpoint)[0] + '.onnx'
    request = replace(request, output=path)
    _check(request)
    loader, most = _calibration(cfg)
    model = build_model(cfg)
    meta = load_quantized(model, checkpoint)
    about = dict(
        classes=meta.get('classes') or None,
        resize=resizing(cfg),
        identity=meta.get('identity'),
    )
    calibrated = build_target(request.target).quantized_outputs
    calibration = [
        inputs
        for _, inputs, _ in load_images(
            model, loader, 256 if calibrated else 1, request, most
        )
    ]
    proof: list[tuple[Tensor, Tensor]] = []
    labels: list[Optional[int]] = []
    if request.verify:
        for images, inputs, classes in load_images(
            model, cfg.test_dataloader, request.images, request
        ):
            proof.append((images, inputs))
            labels += classes or [None] * len(images)
    known = None if None in labels else np.array(labels)
    return write(model, calibration, proof, known, request, about)


def write(
    model: BRECQ,
    calibration: Sequence[Tensor],
    proof: Sequence[tuple[Tensor, Tensor]],
    labels: Optional[np.ndarray],
    request: Request,
    about: dict[str, Any],
) -> dict[str, Any]:
    """Build a file, prove it, and write it if it is proven.

    Args:
        model (BRECQ): Quantized, in evaluation mode.
        calibration (list[Tensor]): Batches of images as the file takes
            them.
        proof (list[tuple]): Batches of other images, as the network takes
            them and as the file does.
        labels (numpy.ndarray, optional): Their classes.
        request (Request): What is wanted, with ``output``.
        about (dict): More for the file's metadata.

    Returns:
        dict: What is known of the file; empty if nothing was proven.

    Raises:
        FileExistsError, ImportError, ValueError: As :func:`export`.
    """
    check_quantized(model)
    _check(request)
    target, path = build_target(request.target), str(request.output)
    network = copy.deepcopy(model.architecture).cpu()
    target.check(network)
    for remark in target.remarks(network, request.pack):
        print_log(remark, 'current', logging.WARNING)
    from ..export.build import Options, build
    from ..export.session import to_bytes
    from ..export.verify import verify

    options = Options(
        target, request.pack, request.batch, request.preprocess, about
    )
    built = build(network, model.data_preprocessor, calibration, options)
    report = {}
    if request.verify:
        at_once = 8 if request.batch == 'dynamic' else int(request.batch)
        fused = target.runtime == 'ONNX Runtime'
        found = verify(network, built, proof, labels, at_once, fused)
        report = found.to_dict()
        print_log('\n' + export_table(report), 'current')
        problem = found.problem(
            target.runtime,
            request.least_agreement,
            request.least_exact,
            request.least_within,
        )
        if problem:
            raise ValueError(f'The file is not the network: {problem}')
        for said in found.others(target.runtime, request.least_agreement):
            print_log(said, 'current', logging.WARNING)
    content = to_bytes(built)
    if report:  # First, for where the file is, all is done.
        save_json(report, f'{path}.json')
    write_whole(path, content)
    print_log(f'{path}: {len(content):,} bytes', 'current')
    return report


def _check(request: Request) -> None:
    """What would only show after minutes of work."""
    check_output(str(request.output), request.force)
    build_target(request.target)
    for package in PACKAGES:
        require(package)


def check_output(path: str, force: bool) -> None:
    """See that nothing of the user's is overwritten.

    Raises:
        FileExistsError: If there is something, without ``force``.
        ValueError: If the name is no file's of ONNX.
    """
    if not path.endswith('.onnx'):
        raise ValueError(f'output={path!r}, expected a name with .onnx')
    if osp.exists(path) and not force:
        raise FileExistsError(
            f'{path!r} is there already: add --force (`force=True`) to '
            'overwrite it, or name another file'
        )


def _calibration(cfg: Config) -> tuple[Any, float]:
    """Return the loader's config, and what of it may be unreadable."""
    calibration = (cfg.get('test_cfg') or {}).get('calibration') or {}
    loader = calibration.get('dataloader')
    if loader is None:
        raise ValueError(
            'test_cfg.calibration.dataloader is missing: the export '
            'calibrates the steps that the target needs beside those of the '
            'checkpoint; use the config of the run'
        )
    return loader, calibration.get('max_unreadable', MAX_UNREADABLE)


def load_images(
    model: BRECQ,
    loader: Any,
    count: int,
    request: Request,
    max_unreadable: Optional[float] = None,
) -> Iterator[tuple[Tensor, Tensor, Optional[list[int]]]]:
    """Images as the network takes them and as the file does.

    Args:
        model (BRECQ): Its preprocessor is applied.
        loader (dict): Config of a data loader.
        count (int): How many images.
        request (Request): What the file is to be.
        max_unreadable (float, optional): Fraction of the images that may be
            unreadable, and are left out; without it all are wanted.

    Yields:
        tuple: N x C x H x W, the same images as the file takes them, and
        their classes where they are known.
    """
    loader = dict(loader)
    if request.batch != 'dynamic':
        size = int(request.batch)
        loader.update(batch_size=size, drop_last=True)
        count = max(count // size, 1) * size
    batches: Any = build_dataloader(loader)
    if max_unreadable is not None:
        batches = ReadableBatches(batches, count, max_unreadable)
    for data in batches:
        with torch.no_grad():
            images = model.data_preprocessor(data, False)['inputs'].cpu()
        if request.batch not in ('dynamic', len(images)):
            continue  # Some of it could not be read.
        inputs = images
        if request.preprocess:
            raw = torch.stack(list(data['inputs'])).to(torch.uint8)
            inputs = raw.permute(0, 2, 3, 1).flip(-1).contiguous()
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


def resizing(cfg: Config) -> Optional[dict[str, Any]]:
    """How test images come to their size, as plain numbers.

    Args:
        cfg (Config): Its test pipeline is read.

    Returns:
        dict: ``size`` (height and width), or ``edge`` and ``crop``; None
        where the pipeline does something else.
    """
    dataset = (cfg.get('test_dataloader') or {}).get('dataset') or {}
    known: dict[str, Any] = {}
    for step in dataset.get('pipeline') or []:
        kind = str(step['type']).split('.')[-1]
        if kind == 'Resize':
            scale = step['scale']
            pair = [scale, scale] if isinstance(scale, int) else list(scale)
            known['size'] = pair[::-1]  # a config has width first
        elif kind == 'ResizeEdge':
            known['edge'] = step['scale']
        elif kind == 'CenterCrop':
            known['crop'] = step['crop_size']
    return json.loads(json.dumps(known)) or None
