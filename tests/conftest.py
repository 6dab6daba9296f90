"""Toy networks: each shows one way in which modules hang together."""

from __future__ import annotations

import logging

import pytest
import torch
from mmengine.logging import MMLogger
from torch import nn

from mmrazor_brecq.algorithms import BRECQ
from mmrazor_brecq.runtime.kernels import Kernel

#: Channels and sizes are so small that a network runs in a millisecond.
WIDTH = 8


def conv_bn(inner, outer, kernel=3, act=True, **kwargs):
    layers = [
        nn.Conv2d(inner, outer, kernel, bias=False, **kwargs),
        nn.BatchNorm2d(outer),
    ]
    return nn.Sequential(*layers, *[nn.ReLU(inplace=True)] * act)


class Residual(nn.Module):
    def __init__(self, inner, outer, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(inner, outer, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outer)
        self.conv2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outer)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = (
            nn.Identity()
            if stride == 1
            else conv_bn(inner, outer, 1, act=False, stride=stride)
        )

    def forward(self, x):
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu(out + self.shortcut(x))


class Inverted(nn.Module):
    """Expand, convolve each channel by itself, project, no last ReLU."""

    def __init__(self, width):
        super().__init__()
        self.expand = conv_bn(width, 2 * width, 1)
        self.depthwise = conv_bn(
            2 * width, 2 * width, padding=1, groups=2 * width
        )
        self.project = conv_bn(2 * width, width, 1, act=False)

    def forward(self, x):
        return x + self.project(self.depthwise(self.expand(x)))


class Attention(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        attention = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1)
        return self.proj(attention @ v)


class PreNorm(nn.Module):
    """A transformer's block: what it adds to, it never quantizes."""

    def __init__(self, width):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 2 * width)
        self.fc2 = nn.Linear(2 * width, width)

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.fc2(nn.functional.gelu(self.fc1(self.norm2(x))))


class Classifier(nn.Module):
    """Stem, blocks, pooling, head: the frame of all the toys."""

    def __init__(self, *blocks, width=WIDTH):
        super().__init__()
        self.stem = conv_bn(3, WIDTH, padding=1)
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(width, 5)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def residual():
    return Classifier(Residual(WIDTH, WIDTH), Residual(WIDTH, 12, 2), width=12)


def inverted():
    return Classifier(Inverted(WIDTH), Inverted(WIDTH))


def grouped():
    """Grouped, dilated, strided, and padded by reflection."""
    block = nn.Sequential(
        conv_bn(WIDTH, WIDTH, padding=1, groups=4),
        conv_bn(WIDTH, WIDTH, padding=2, dilation=2),
        conv_bn(WIDTH, WIDTH, stride=2, padding=1, padding_mode='reflect'),
    )
    return Classifier(block)


class Shared(nn.Module):
    """A head that is called on two levels, as detectors have it."""

    def __init__(self):
        super().__init__()
        self.stem = conv_bn(3, WIDTH, padding=1)
        self.blocks = nn.ModuleList([Residual(WIDTH, WIDTH)])
        self.head = nn.ModuleList([Tower(WIDTH)])

    def forward(self, x):
        fine = self.blocks[0](self.stem(x))
        coarse = nn.functional.avg_pool2d(fine, 2)
        tower = self.head[0]
        return tower(fine) + tower(coarse)


class Tower(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.out = nn.Conv2d(width, 5, 1)

    def forward(self, x):
        return self.out(self.conv(x).relu()).mean((2, 3))


class Fuse(nn.Module):
    """Takes a dict of two tensors and a number, returns a list of two."""

    def __init__(self, width):
        super().__init__()
        self.left = nn.Conv2d(width, width, 1)
        self.right = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, both, gain=1.0):
        left = self.left(both['left'])
        right = self.right(both['right']) * gain
        return [left + both['right'], (left + right).relu()]


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = conv_bn(3, WIDTH, padding=1)
        self.fuse = nn.ModuleList([Fuse(WIDTH), Fuse(WIDTH)])
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x):
        x = self.stem(x)
        a, b = self.fuse[0](dict(left=x, right=x.flip(-1)))
        a, b = self.fuse[1](dict(left=b, right=a), gain=0.5)
        return self.head((a + b).mean((2, 3)))


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(3, WIDTH, 4, 4)
        self.blocks = nn.ModuleList([PreNorm(WIDTH), PreNorm(WIDTH)])
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


class Uncalled(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = conv_bn(3, WIDTH, padding=1)
        self.auxiliary = nn.Conv2d(WIDTH, 5, 1)
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x):
        return self.head(self.stem(x).mean((2, 3)))


class Transposed(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = conv_bn(3, WIDTH, padding=1, stride=2)
        self.up = nn.ConvTranspose2d(WIDTH, WIDTH, 2, 2)
        self.bn = nn.BatchNorm2d(WIDTH)
        self.out = nn.Conv2d(WIDTH, 5, 1)

    def forward(self, x):
        return self.out(self.bn(self.up(self.stem(x))).relu())


TOYS = dict(
    residual=residual,
    inverted=inverted,
    grouped=grouped,
    shared=Shared,
    nested=Nested,
    transformer=Transformer,
    uncalled=Uncalled,
    transposed=Transposed,
)


def randomize(network, generator):
    """Norms that move every channel, weights that are of no special form."""
    for norm in network.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            for gain in norm.weight, norm.running_var:
                gain.data.uniform_(0.5, 1.5, generator=generator)
            for shift in norm.bias, norm.running_mean:
                shift.data.normal_(0, 0.2, generator=generator)
    return network


def make(name, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = TOYS[name]()
    return randomize(network, torch.Generator().manual_seed(seed)).eval()


@pytest.fixture(scope='session', autouse=True)
def uncompiled():
    """Fast tests, and fixtures of any scope, wait for no compiler."""
    Kernel.plain = True


@pytest.fixture(autouse=True)
def compiled(request, monkeypatch):
    """The slow tests use it."""
    if request.node.get_closest_marker('slow'):
        monkeypatch.setattr(Kernel, 'plain', False)


@pytest.fixture
def toy():
    """Builds a toy network by its name, with the same weights every time."""
    return make


@pytest.fixture(params=TOYS)
def each_toy(request):
    """Every toy network, one after the other."""
    return make(request.param)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def batches(generator):
    """Twelve images in batches of unequal sizes."""
    images = torch.randn(12, 3, 8, 8, generator=generator)
    return list(images.split([5, 4, 3]))


@pytest.fixture
def quantize(toy, batches):
    """Builds a prepared BRECQ around a toy network; gives its teacher too."""

    def build(name, bits=(4, 4), **kwargs):
        weight, activation = bits
        quantization = dict(
            weight=dict(bits=weight),
            activation=activation and dict(bits=activation),
        )
        quantization.update(kwargs.pop('quantization', {}))
        network = toy(name) if isinstance(name, str) else name
        model = BRECQ(network, quantization, **kwargs)
        return model, model.prepare(batches[0][:1])

    return build


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(48, 3, 8, 8, generator=generator)


@pytest.fixture
def quantized(toy, images):
    """Builds a quantized toy network by its name."""

    def build(name, weight=8, activation=8, symmetric=False):
        grid = dict(symmetric=symmetric)
        model = BRECQ(
            toy(name),
            dict(
                weight=dict(grid, bits=weight),
                activation=activation and dict(grid, bits=activation),
            ),
            reconstructor=dict(type='NearestRounding', batch_size=8),
        ).eval()
        teacher = model.prepare(images[:1])
        list(model.reconstruct(teacher, list(images.split(16))))
        return model

    return build


def _kept(level):
    """Yields the messages of the current logger from a level on."""
    logger = MMLogger.get_current_instance()
    messages = []

    class Keep(logging.Handler):
        def emit(self, record):
            messages.append(record.getMessage())

    handler = Keep(level)
    logger.addHandler(handler)
    yield messages
    logger.removeHandler(handler)


@pytest.fixture
def warnings_log():
    """Warnings of the current logger."""
    yield from _kept(logging.WARNING)


@pytest.fixture
def said_log():
    """All messages of the current logger."""
    yield from _kept(logging.INFO)
