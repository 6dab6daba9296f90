"""Export quantized checkpoints to files of ONNX, and prove the files."""

from __future__ import annotations

import copy
import logging
import os.path as osp
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Optional

import numpy as np
from mmengine.config import Config
from mmengine.logging import print_log
from torch import Tensor, nn

from .._requirements import require
from ..algorithms import BRECQ
from ..algorithms.brecq import INPUT_FORM
from ..checkpoint import (
    check_quantized,
    load_quantized,
    save_json,
    write_whole,
)
from ..export import Target, build_target, decoder_of
from ..report import export_table
from ..targets import TargetConfig
from ..validation import Batch, Count, Fraction, validated
from .deploy_images import (
    calibration_source,
    load_images,
    proof_source,
    resizing,
)
from .deploy_metric import metric_of_file, metric_problem
from .launch import build_model

#: Least fraction of boxes that are the same in the file and in torch.
LEAST_BOXES = 0.98
#: Measures the content of a file.
Metric = Callable[[bytes], Optional[dict[str, Any]]]
#: Packages that the export needs.
PACKAGES = ('onnx', 'onnxscript', 'onnx_ir', 'onnxruntime')


@validated
@dataclass
class Request:
    """Options of an export.

    Args:
        target (str | dict, optional): A known name, such as
            ``'openvino'``, the path of a YAML file, or fields of
            :class:`mmrazor_brecq.targets.Description`. By default the target
            that the network was quantized for, or else ``onnxruntime``.
        pack (bool): Whether weights of at most 4 bits are packed.
        batch (str | int): ``'dynamic'``, or the number of images.
        output (str, optional): The file; by default that of the checkpoint
            with the ending ``.onnx``.
        force (bool): Whether to overwrite the file.
        preprocess (bool): Whether the file normalizes the images itself.
        postprocess (bool): Whether the file of a detector puts out boxes,
            scores and classes, in place of the maps of its head.
        verify (bool): Whether to compare the file with the network in torch.
        images (int): Number of images to compare on.
        least_agreement (float): Least fraction of images with the same
            class, from 0 to 1.
        least_exact (float): Least fraction of equal integers in each layer,
            from 0 to 1.
        least_within (float): Least fraction of integers in each layer that
            differ by at most 1, from 0 to 1.
        least_metric (float): Least fraction of the metric in torch that the
            file has, from 0 to 1, where the config measures one.

    Example:
        >>> request = Request(target='openvino', batch=1, images=256)
    """

    target: Optional[TargetConfig] = None
    pack: bool = False
    batch: Batch = 'dynamic'
    output: Optional[str] = None
    force: bool = False
    preprocess: bool = False
    postprocess: bool = False
    verify: bool = True
    images: Count = 1024
    least_agreement: Fraction = 0.9
    least_exact: Fraction = 0.97
    least_within: Fraction = 0.9999
    least_metric: Fraction = 0.9


def export(cfg: Config, checkpoint: str, request: Request) -> dict[str, Any]:
    """Write the quantized network of a run as a file of ONNX.

    Args:
        cfg (Config): The config of the run, from :func:`load_config`.
        checkpoint (str): The quantized checkpoint of the run.
        request (Request): Options of the export.

    Returns:
        dict: The report of the proof; empty without a proof.

    Raises:
        FileExistsError: If the file exists, without ``force``.
        ImportError: If a package is missing.
        ValueError: If the checkpoint is of another config, the target does
            not support the network, or the file differs from the network.
            Then nothing is written.
    """
    path = request.output or osp.splitext(checkpoint)[0] + '.onnx'
    request = replace(request, output=path)
    _check(request)
    source = calibration_source(cfg)
    model = build_model(cfg)
    if request.postprocess:
        decoder_of(model.architecture)
    meta = load_quantized(model, checkpoint)
    _check_images_alone(model)
    about = dict(
        classes=meta.get('classes') or None,
        resize=resizing(cfg, model.data_preprocessor),
        identity=meta.get('identity'),
    )
    count = 256 if _target(request, model).quantized_outputs else 1
    calibration = [
        inputs for _, inputs, _ in load_images(model, source, count, request)
    ]
    proof: list[tuple[Tensor, Tensor]] = []
    labels: list[Optional[int]] = []
    if request.verify:
        for images, inputs, classes in load_images(
            model, proof_source(cfg, source), request.images, request
        ):
            proof.append((images, inputs))
            labels += classes or [None] * len(images)
    known = None if None in labels else np.array(labels)

    def metric(content: bytes) -> Optional[dict[str, Any]]:
        if known is not None or not cfg.get('test_evaluator'):
            return None
        return metric_of_file(
            cfg, model, content, request.images, request.preprocess
        )

    return write(model, calibration, proof, known, request, about, metric)


def write(
    model: BRECQ,
    calibration: Sequence[Tensor],
    proof: Sequence[tuple[Tensor, Tensor]],
    labels: Optional[np.ndarray],
    request: Request,
    about: dict[str, Any],
    metric: Optional[Metric] = None,
) -> dict[str, Any]:
    """Build a file, prove it, and write it if the proof succeeds.

    Args:
        model (BRECQ): A quantized model in evaluation mode.
        calibration (list[Tensor]): Batches of calibration images, as inputs
            of the file.
        proof (list[tuple]): Batches of other images, as inputs of the
            network and as inputs of the file.
        labels (numpy.ndarray, optional): The classes of these images, of
            shape N.
        request (Request): Options of the export, with ``output``.
        about (dict): Additional metadata of the file.
        metric (callable, optional): Measures the content of a file, as
            :func:`metric_of_file` does.

    Returns:
        dict: The report of the proof; empty without a proof.

    Raises:
        FileExistsError, ImportError, ValueError: As :func:`export`.
    """
    check_quantized(model)
    _check_images_alone(model)
    _check(request)
    target, path = _target(request, model), str(request.output)
    network = copy.deepcopy(model.architecture).cpu()
    target.check(network)
    if request.postprocess:
        decoder_of(network)
    for remark in target.remarks(network, request.pack):
        print_log(remark, 'current', logging.WARNING)
    from ..export.build import Options, build
    from ..export.session import to_bytes

    options = Options(
        target, request.pack, request.batch, request.preprocess, about
    )
    built = build(network, model.data_preprocessor, calibration, options)
    report = {}
    if request.verify:
        runtime = target.title
        report = _prove(
            network, built, proof, labels, request, runtime, metric
        )
    if request.postprocess:
        built, boxes = _with_boxes(
            network, built, calibration[0], proof, request
        )
        if boxes is not None:
            report['boxes'] = boxes
            print_log(
                f'{boxes["equal"]} of {boxes["boxes"]} boxes on '
                f'{boxes["images"]} images are those that torch makes of the '
                "file's maps",
                'current',
            )
    content = to_bytes(built)
    if report:  # Before the file, so that an existing file has its report.
        save_json(report, f'{path}.json')
    write_whole(path, content)
    print_log(f'{path}: {len(content):,} bytes', 'current')
    return report


def _prove(
    network: nn.Module,
    built: Any,
    proof: Sequence[tuple[Tensor, Tensor]],
    labels: Optional[np.ndarray],
    request: Request,
    runtime: str,
    metric: Optional[Metric],
) -> dict[str, Any]:
    """Return the report of a proof, and log it.

    Args:
        network (nn.Module): The quantized network, on the CPU.
        built (onnx_ir.Model): The file's content.
        proof (list[tuple]): As for :func:`write`.
        labels (numpy.ndarray, optional): As for :func:`write`.
        request (Request): Options of the export.
        runtime (str): The runtime of the target.
        metric (callable, optional): As for :func:`write`.

    Raises:
        ValueError: If the proof fails.
    """
    from ..export.session import to_bytes
    from ..export.verify import verify

    at_once = 8 if request.batch == 'dynamic' else int(request.batch)
    fused = runtime == 'ONNX Runtime'
    found = verify(network, built, proof, labels, at_once, fused)
    report: dict[str, Any] = found.to_dict()
    if metric is not None:
        report['metric'] = metric(to_bytes(built))
    print_log('\n' + export_table(report), 'current')
    problem = found.problem(
        runtime,
        request.least_agreement,
        request.least_exact,
        request.least_within,
    ) or metric_problem(report.get('metric'), request.least_metric)
    if problem:
        raise ValueError(f'The file is not the network: {problem}')
    for warning in found.others(runtime, request.least_agreement):
        print_log(warning, 'current', logging.WARNING)
    return report


def _with_boxes(
    network: nn.Module,
    built: Any,
    example: Tensor,
    proof: Sequence[tuple[Tensor, Tensor]],
    request: Request,
) -> tuple[Any, Optional[dict[str, int]]]:
    """Return the content of a file with boxes, and how it was proven.

    Args:
        network (nn.Module): The quantized detector, on the CPU.
        built (onnx_ir.Model): The content of the file with maps.
        example (Tensor): Images as inputs of the file.
        proof (list[tuple]): As for :func:`write`; empty without a proof.
        request (Request): Options of the export.

    Raises:
        ValueError: If the boxes are not those of torch.
    """
    from ..export.nms import compare_boxes, with_boxes

    example = example[:1]
    if request.preprocess:
        example = example.permute(0, 3, 1, 2).float()
    boxed = with_boxes(network, built, example, request.batch)
    if not proof:
        return boxed, None
    at_once = 8 if request.batch == 'dynamic' else int(request.batch)
    images = proof[0][1][:at_once]
    found = compare_boxes(network, built, boxed, images, example)
    if found['equal'] < LEAST_BOXES * found['boxes']:
        raise ValueError(
            f'The file decodes its maps otherwise than torch: {found["equal"]}'
            f' of {found["boxes"]} boxes on {found["images"]} images are the '
            f'same, expected {LEAST_BOXES:.0%}. Without --with-postprocess '
            '(`postprocess=True`) it has the maps'
        )
    return boxed, found


def _check(request: Request) -> None:
    """Refuse before any work what would fail only after it."""
    check_output(str(request.output), request.force)
    for package in PACKAGES:
        require(package)


def _target(request: Request, model: BRECQ) -> Target:
    """Return the target that a user names, or that the network has."""
    return build_target(request.target or model.target or 'onnxruntime')


def _check_images_alone(model: BRECQ) -> None:
    """Refuse a network that takes more than images, which no file can."""
    if hasattr(model, INPUT_FORM):
        raise ValueError(
            f'{type(model.architecture).__name__} takes several inputs, or '
            'integers, and files are written for networks that take images '
            'alone: use the quantized model in torch'
        )
    if model.takes_samples:
        raise ValueError(
            f'{type(model.architecture).__name__} takes data samples beside '
            'images, and a file takes images alone: detectors in two stages '
            'or with queries are not exported. Evaluate the quantized model '
            'in torch, or quantize a detector with a dense head'
        )


def check_output(path: str, force: bool) -> None:
    """Check that a file can be written without overwriting another.

    Args:
        path (str): The file.
        force (bool): Whether to overwrite it.

    Raises:
        FileExistsError: If the file exists, without ``force``.
        ValueError: If the name does not end in ``.onnx``.
    """
    if not path.endswith('.onnx'):
        raise ValueError(f'output={path!r}, expected a name with .onnx')
    if osp.exists(path) and not force:
        raise FileExistsError(
            f'{path!r} is there already: add --force (`force=True`) to '
            'overwrite it, or name another file'
        )
