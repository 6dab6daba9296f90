"""What both notebooks start from: the demo's network and images."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet

DEMO = Path(
    os.environ.get('MMRAZOR_BRECQ_DEMO', Path(__file__).parents[2] / 'demo')
)
CLASSES = (
    'T-shirt Trouser Pullover Dress Coat Sandal Shirt Sneaker Bag Boot'
).split()


class NarrowResNet(ResNet):
    """ResNet-18 of torchvision with 24 instead of 64 base channels."""

    def __init__(self) -> None:
        super().__init__(BasicBlock, [2, 2, 2, 2], num_classes=10)
        self.conv1 = nn.Conv2d(3, 24, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(24)
        self.fc = nn.Linear(192, 10)

    def _make_layer(self, block, planes, *args, **kwargs):
        if planes == 64:
            self.inplanes = 24
        return super()._make_layer(block, planes * 24 // 64, *args, **kwargs)


def load_model() -> nn.Module:
    """Return the float network, trained on Fashion-MNIST."""
    state = torch.load(DEMO / 'resnet18_fashion-mnist.pth', weights_only=True)
    state = state.get('state_dict', state)
    model = NarrowResNet()
    model.load_state_dict(
        {name.split('.', 1)[1]: value for name, value in state.items()}
        | {f'fc.{x}': state[f'head.fc.{x}'] for x in ('weight', 'bias')},
        strict=False,
    )
    return model.eval()


def load_images(split: str, count: int) -> tuple[Tensor, Tensor]:
    """Return preprocessed images, N x 3 x 64 x 64, and their labels.

    ``split`` is ``'calib'`` (1,024 training images) or ``'t10k'`` (10,000
    test images).
    """

    def read(kind: str, skip: int) -> np.ndarray:
        with gzip.open(DEMO / f'fashion_mnist/{split}-{kind}-ubyte.gz') as f:
            return np.frombuffer(f.read(), np.uint8)[skip:]

    pixels = read('images-idx3', 16).reshape(-1, 1, 28, 28)[:count]
    labels = read('labels-idx1', 8)[:count]
    images = nn.functional.interpolate(
        torch.tensor(pixels).float(), size=64, mode='bilinear'
    )
    images = ((images - 73) / 90).expand(-1, 3, -1, -1).contiguous()
    return images, torch.tensor(labels).long()


@torch.no_grad()
def logits_of(model: nn.Module, images: Tensor) -> Tensor:
    """Return the logits of all images, 256 at a time."""
    return torch.cat([model(batch) for batch in images.split(256)])
