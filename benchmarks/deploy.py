"""What does the integer network buy where it is deployed?

    python benchmarks/deploy.py

File size, latency and accuracy of the float network, of what the runtimes'
own post-training quantization makes of it, and of ours, for the demo models
at 64 pixels and for ResNet-50 and MobileNetV2 with random weights at 224.
Latency is of one image, the median over rounds in which all files take turns,
so that whatever else the machine does hits all of them alike.
What is quantized already, in --out, is not quantized again.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import os.path as osp
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from typing import Any, Callable, Optional

import numpy as np
import onnx_ir as ir
import openvino
import torch
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    quantize_static,
)
from torch import Tensor, nn

import mmrazor_brecq
from mmrazor_brecq.checkpoint import load_float
from mmrazor_brecq.config.load import read_config
from mmrazor_brecq.engine.deploy import Request, export
from mmrazor_brecq.engine.deploy_images import Source, load_images
from mmrazor_brecq.engine.launch import build_model
from mmrazor_brecq.export.session import fusion, open_session, run
from mmrazor_brecq.export.trace import trace

ROOT = osp.dirname(osp.dirname(osp.abspath(__file__)))
DEMO = {'resnet18': 'resnet', 'mobilenet-v2': 'mobilenet_v2'}
LARGE = ['resnet50', 'mobilenet-v2-224']
SETTINGS = ['w8a8', 'w4a8', 'w4a4']


@dataclass
class File:
    """One line of the table."""

    model: str
    how: str
    path: str
    runtime: str = 'ONNX Runtime'
    packed: str = ''
    accuracy: Optional[float] = None
    milliseconds: tuple = ()

    def size(self) -> float:
        """Megabytes; an OpenVINO model has its weights in a second file."""
        paths = [self.path, self.path.replace('.xml', '.bin')]
        return sum(map(osp.getsize, set(paths))) / 1e6

    def open(self, threads: int) -> Callable[[Tensor], np.ndarray]:
        """A function from images to logits."""
        if self.runtime == 'ONNX Runtime':
            session = open_session(self.path, threads=threads)
            return lambda images: run(session, images)[-1]
        compiled = openvino.Core().compile_model(
            self.path,
            'CPU',
            {
                'INFERENCE_NUM_THREADS': threads,
                'INFERENCE_PRECISION_HINT': 'f32',
                'PERFORMANCE_HINT': 'LATENCY',
            },
        )
        return lambda images: compiled(images.numpy())[0]

    def fused(self) -> str:
        """How many convolutions run in integers, of how many."""
        if self.runtime != 'ONNX Runtime':
            return ''
        with open(self.path, 'rb') as file:
            counts, floats = fusion(file.read())
        integer = counts.get('QLinearConv', 0)
        return f'{integer} of {integer + len(floats)}'


class Reader(CalibrationDataReader):
    """Calibration images, one by one."""

    def __init__(self, images: Tensor) -> None:
        self.images = iter(images.split(1))

    def get_next(self) -> Any:
        image = next(self.images, None)
        return None if image is None else dict(image=image.numpy())


def peers(model: str, network: nn.Module, images: Tensor, out: str) -> list:
    """The float network, and the runtimes' own quantization of it."""
    paths = {
        kind: osp.join(out, f'{model}_{kind}')
        for kind in ('float.onnx', 'ort.onnx', 'nncf.xml')
    }
    built = trace(network, images[:1])
    built.graph.name = model
    ir.save(built, paths['float.onnx'])
    quantize_static(
        paths['float.onnx'],
        paths['ort.onnx'],
        Reader(images),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
    )
    import nncf

    nncf.set_log_level(40)
    quantized = nncf.quantize(
        openvino.Core().read_model(paths['float.onnx']),
        nncf.Dataset(list(images.split(1)), lambda x: {'image': x.numpy()}),
        subset_size=len(images),
    )
    openvino.save_model(quantized, paths['nncf.xml'], compress_to_fp16=False)
    plain = File(model, 'float', paths['float.onnx'])
    return [
        plain,
        replace(plain, runtime='OpenVINO'),
        File(model, "ONNX Runtime's static", paths['ort.onnx']),
        File(model, 'NNCF', paths['nncf.xml'], 'OpenVINO'),
    ]


def demo_checkpoint(
    model: str, setting: str, out: str, options: list[str]
) -> tuple[str, str]:
    """Config and quantized checkpoint, made where it is not there yet."""
    folder = osp.join(out, f'{model}_{setting}')
    checkpoint = osp.join(folder, 'quantized.pth')
    config = (
        f'{ROOT}/configs/brecq/{DEMO[model]}/'
        f'brecq_{model}_{setting}_fashion-mnist.py'
    )
    if not osp.exists(checkpoint):
        command = [sys.executable, 'tools/ptq.py', config]
        command += [f'demo/{model}_fashion-mnist.pth', '--work-dir', folder]
        if options:
            command += ['--cfg-options', *options]
        subprocess.run(
            command,
            cwd=ROOT,
            check=True,
            env=dict(os.environ, OMP_NUM_THREADS='1'),
            stdout=subprocess.DEVNULL,
        )
    return config, checkpoint


def demo_files(
    model: str, out: str, settings: list[str], options: list[str]
) -> tuple[list, list]:
    """All files of a demo model, and its test images."""
    os.environ.setdefault('MMRAZOR_BRECQ_DEMO', osp.join(ROOT, 'demo'))
    files: list[File] = []
    for setting in settings:
        config, checkpoint = demo_checkpoint(model, setting, out, options)
        changes = dict(option.split('=', 1) for option in options)
        cfg = read_config(config, {k: literal(v) for k, v in changes.items()})
        if not files:
            plain = build_model(cfg)
            load_float(plain, f'{ROOT}/demo/{model}_fashion-mnist.pth')
            loader = cfg.test_cfg.calibration.dataloader
            parts = load_images(plain, Source(loader), 256, Request())
            images = torch.cat([x for x, _, _ in parts])
            files += peers(model, plain.architecture, images, out)
            test = load_images(
                plain, Source(cfg.test_dataloader), 10**6, Request()
            )
            test = [(x, np.array(labels)) for x, _, labels in test]
        for target, runtime in (
            ('onnxruntime', 'ONNX Runtime'),
            ('openvino', 'OpenVINO'),
        ):
            paths = [
                osp.join(out, f'{model}_{setting}_{target}{kind}.onnx')
                for kind in ('', '_packed')
            ]
            for path, pack in zip(paths, (False, True)):
                request = Request(
                    target, pack, output=path, force=True, verify=False
                )
                if not pack or setting != 'w8a8':
                    export(cfg, checkpoint, request)
            name = f'ours, {setting.upper()}'
            packed = paths[1] if setting != 'w8a8' else ''
            files.append(File(model, name, paths[0], runtime, packed))
    return files, test


def literal(text: str) -> Any:
    """A value as the command line of the tools reads it."""
    try:
        return ast.literal_eval(text)
    except ValueError:
        return text


def large_files(
    model: str, out: str, settings: list[str]
) -> tuple[list, list]:
    """All files of a network of mmcls with random weights, at 224 pixels."""
    from mmcls.models import build_classifier

    torch.manual_seed(0)
    backbone = (
        dict(type='ResNet', depth=50)
        if model == 'resnet50'
        else dict(type='MobileNetV2')
    )
    network = build_classifier(
        dict(
            type='ImageClassifier',
            backbone=backbone,
            neck=dict(type='GlobalAveragePooling'),
            head=dict(
                type='LinearClsHead',
                num_classes=1000,
                in_channels=2048 if model == 'resnet50' else 1280,
            ),
        )
    ).eval()
    images = torch.randn(32, 3, 224, 224)
    files = peers(model, network, images, out)
    for setting in settings:
        weight, activation = (int(x) for x in setting[1:].split('a'))
        quantized, _ = mmrazor_brecq.quantize(
            network,
            images,
            weight,
            activation,
            reconstructor=dict(type='NearestRounding', batch_size=16),
            batch_size=8,
        )
        path = osp.join(out, f'{model}_{setting}.onnx')
        mmrazor_brecq.export_onnx(
            quantized, images, path, force=True, verify=False
        )
        files.append(File(model, f'ours, {setting.upper()}', path))
    return files, []


def measure(files: list[File], shape: tuple, seconds: float) -> None:
    """Latency of one image, all files taking turns."""
    image = torch.randn(1, *shape)
    for threads in (1, 2):
        calls = [file.open(threads) for file in files]
        spent: list[list[float]] = [[] for _ in files]
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            for call, times in zip(calls, spent):
                call(image)  # once to warm the caches
                for _ in range(5):
                    start = time.perf_counter()
                    call(image)
                    times.append(time.perf_counter() - start)
        for file, times in zip(files, spent):
            file.milliseconds += (1e3 * statistics.median(times),)


def grade(files: list[File], test: list) -> None:
    """Top-1 on all test images, in per cent."""
    for file in files if test else []:
        call = file.open(1)
        hits = [(call(x).argmax(1) == labels).sum() for x, labels in test]
        file.accuracy = 100 * sum(hits) / sum(len(x) for x, _ in test)


def row(file: File) -> str:
    """One line of Markdown."""
    packed = f'{osp.getsize(file.packed) / 1e6:.2f}' if file.packed else ''
    accuracy = '' if file.accuracy is None else f'{file.accuracy:.2f}'
    one, two = (f'{ms:.2f}' for ms in file.milliseconds)
    return (
        f'| {file.model} | {file.how} | {file.runtime} | {file.size():.2f} '
        f'| {packed} | {one} | {two} | {accuracy} | {file.fused()} |'
    )


def sizes(out: str, settings: list[str]) -> None:
    """Integer checkpoints beside what their bits say."""
    print('| Model | What the bits say | `quantized.pth` | more |')
    print('| :-- | --: | --: | --: |')
    for model in DEMO:
        for setting in settings:
            _, path = demo_checkpoint(model, setting, out, [])
            with open(osp.join(osp.dirname(path), 'report.json')) as file:
                bits = json.load(file)['weight_bytes']['quantized']
            size = osp.getsize(path)
            print(
                f'| {model}, {setting.upper()} | {bits:,} | {size:,} '
                f'| {size / bits - 1:.1%} |'
            )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--models', nargs='+', default=[*DEMO, *LARGE])
    parser.add_argument('--settings', nargs='+', default=SETTINGS)
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        default=[],
        help='of the demo models, as for tools/ptq.py',
    )
    parser.add_argument('--out', default='work_dirs/deploy')
    parser.add_argument(
        '--seconds', type=float, default=15, help='of each latency'
    )
    parser.add_argument('--only', choices=['sizes', 'files'])
    args = parser.parse_args()
    out = osp.abspath(args.out)
    os.makedirs(out, exist_ok=True)
    if args.only != 'files':
        sizes(out, [*SETTINGS, 'w2a4'])
    if args.only == 'sizes':
        return
    print(
        '\n| Model | Quantized by | Runs in | MB | packed | 1 thread (ms) '
        '| 2 threads (ms) | Top-1 | Convolutions in integers |\n'
        '| :-- | :-- | :-- | --: | --: | --: | --: | --: | --: |'
    )
    for model in args.models:
        files, test = (
            demo_files(model, out, args.settings, args.cfg_options)
            if model in DEMO
            else large_files(model, out, args.settings)
        )
        shape = (3, 64, 64) if model in DEMO else (3, 224, 224)
        measure(files, shape, args.seconds)
        grade(files, test)
        for file in files:
            print(row(file), flush=True)


if __name__ == '__main__':
    main()
