"""Which architectures of mmcls can be exported, and are they the same then?

    python benchmarks/architectures.py

Random weights, nearest rounding on random images, 8 bits; ONNX Runtime.
Prints one row for each: seconds of the export, images of the same class,
mean difference relative to the mean magnitude, the least share of equal
integers in any layer, and what runs in integers.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time

import torch
from mmcls.models import build_backbone
from torch import nn

import mmrazor_brecq

#: Backbones, all with a classifier of ten classes on top.
CASES = {
    'ResNet-50': dict(type='ResNet', depth=50),
    'RegNetX-400MF': dict(type='RegNet', arch='regnetx_400mf'),
    'EfficientNet-B0': dict(type='EfficientNet', arch='b0'),
    'ShuffleNetV2': dict(type='ShuffleNetV2'),
    'ConvNeXt-T': dict(type='ConvNeXt', arch='tiny'),
    'ViT-T (DeiT)': dict(
        type='VisionTransformer', arch='deit-tiny', img_size=64
    ),
    'Swin-T': dict(
        type='SwinTransformer', arch='tiny', img_size=64, pad_small_map=True
    ),
}


class Classifier(nn.Module):
    """A backbone, the mean over places, and a linear layer."""

    def __init__(self, backbone: dict, images: torch.Tensor) -> None:
        super().__init__()
        self.backbone = build_backbone(backbone)
        self.head = nn.Linear(self.features(images[:1]).shape[1], 10)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        x = self.backbone(images)[-1]
        x = x[-1] if isinstance(x, (list, tuple)) else x
        return x.flatten(2).mean(2) if x.dim() == 4 else x

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(images))


def settle(network: nn.Module, images: torch.Tensor) -> None:
    """Give norms the statistics of the images: with untouched ones the
    signal of a deep network fades away.
    """
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    network.train(bool(norms))
    with torch.no_grad():
        network(images)
    network.eval()


def measure(name: str, size: int) -> str:
    """One row of the table."""
    torch.manual_seed(0)
    images = torch.randn(64, 3, size, size)
    network = Classifier(dict(CASES[name]), images)
    settle(network, images)
    model, _ = mmrazor_brecq.quantize(
        network,
        images,
        weight_bits=8,
        activation_bits=8,
        reconstructor=dict(type='NearestRounding', batch_size=16),
    )
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, 'model.onnx')
        try:
            report = mmrazor_brecq.export_onnx(
                model, images, path, least_agreement=0.0
            )
        except ValueError as error:
            print(f'{name}: {error}', file=sys.stderr)
            name += ', batch of 8'
            report = mmrazor_brecq.export_onnx(
                model, images, path, batch=8, least_agreement=0.0
            )
        megabytes = os.path.getsize(path) / 1e6
    seconds = time.perf_counter() - start
    match, counts = report['matches'][0], report['operators']
    integer = ', '.join(
        f'{counts[op]} {op}'
        for op in (
            'QLinearConv',
            'QLinearAdd',
            'MatMulIntegerToFloat',
            'QGemm',
        )
        if op in counts
    )
    reasons = sorted(set(report['float_convolutions'].values()))
    floats = len(report['float_convolutions'])
    note = f'{floats} ({"; ".join(reasons)})' if floats else '0'
    exact = min(layer['exact'] for layer in report['layers'])
    within = min(layer['within'] for layer in report['layers'])
    return (
        f'| {name} | {megabytes:.1f} | {seconds:.0f} '
        f'| {match["agreement"]:.1%} | {match["mean"]:.2%} | {exact:.2%} '
        f'| {within:.2%} | {integer} | {note} |'
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--models', nargs='+', default=list(CASES))
    parser.add_argument('--size', type=int, default=64)
    args = parser.parse_args()
    print(
        '| Model | MB | Export (s) | Same class | Mean diff. | Equal '
        '| Within one | In integers | Convolutions in float |\n'
        '| :-- | --: | --: | --: | --: | --: | --: | :-- | :-- |'
    )
    for name in args.models:
        print(measure(name, args.size), flush=True)


if __name__ == '__main__':
    main()
