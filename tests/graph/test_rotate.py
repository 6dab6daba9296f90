"""Channels of residual streams are rotated, and outputs stay."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from mmengine.logging import MMLogger
from torch import nn

import mmrazor_brecq
from mmrazor_brecq.activations import CachedBatches
from mmrazor_brecq.algorithms import BRECQ
from mmrazor_brecq.engine.fine_tuning import folded
from mmrazor_brecq.graph import find_streams, record, relative_difference
from mmrazor_brecq.graph.rotate import rotation
from mmrazor_brecq.layers import quant_layers

NEAREST = dict(type='NearestRounding', batch_size=8)


class Block(nn.Module):
    """A pre-norm transformer block, the shortcut as a function of both."""

    def __init__(self, width=12, norm=nn.LayerNorm, add=torch.add, bias=True):
        super().__init__()
        self.norm1, self.norm2 = norm(width), norm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.proj = nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 16), nn.Linear(16, width)
        self.gamma = nn.Parameter(torch.rand(width))
        self.add = add

    def attend(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        weights = (q @ k.mT).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).flatten(2))

    def forward(self, x):
        x = self.add(x, self.attend(self.norm1(x)))
        return self.add(x, self.fc2(self.fc1(self.norm2(x)).relu()))


class Vit(nn.Module):
    """A vision transformer of 2 blocks on 3 x 8 x 8 pixels."""

    def __init__(self, width=12, norm=nn.LayerNorm, block=Block, **options):
        super().__init__()
        self.embed = nn.Conv2d(3, width, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.position = nn.Parameter(torch.randn(1, 5, width))
        blocks = [block(width, norm, **options) for _ in range(2)]
        self.blocks = nn.Sequential(*blocks)
        self.norm, self.head = norm(width), nn.Linear(width, 5)
        self.pool = lambda x: x[:, 0]
        with torch.no_grad():
            for name, x in self.named_parameters():
                if 'norm' in name:
                    x.copy_(torch.randn(width) + ('weight' in name))
            self.norm.weight[1] = 0
            self.position[..., 3] += 40  # An outlier.

    def stream(self, x):
        x = self.embed(x).flatten(2).mT
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        return self.blocks(x + self.position)

    def forward(self, x):
        return self.head(self.pool(self.norm(self.stream(x))))


class Scaled(Block):
    """A block with a factor behind attention."""

    def attend(self, x):
        return self.gamma * super().attend(x)


class Pieces(Block):
    """A block of plain functions, its channels behind a convolution."""

    def forward(self, x):
        maps = super().forward(x)[:, 1:].mT.unflatten(2, (2, 2))
        maps = maps.roll(1, 3) * 2
        return torch.cat([x[:, :1], maps.flatten(2).mT], 1)


class PostNorm(Block):
    """A block whose norms write to the stream."""

    def forward(self, x):
        x = self.norm1(x + self.attend(x))
        return self.norm2(x + self.fc2(self.fc1(x)))


class Gated(Block):
    """A block whose shortcut is multiplied by itself."""

    def forward(self, x):
        return x + self.attend(self.norm1(x)) * x.sigmoid()


class BatchVit(Vit):
    """A network whose head has a batch norm that stays."""

    def forward(self, x):
        return super().forward(x).relu()


def pooled(**options):
    network = Vit(**options)
    network.pool = lambda x: x.mean(1)
    return network


def second_head():
    network = Vit()
    network.other = nn.Linear(12, 5)
    network.pool = lambda x: x[:, 0] + network.other(x[:, 1])[:, :1]
    return network


def bare_reader():
    """A layer reads the stream without a norm."""
    network = Vit()
    network.blocks.insert(1, nn.Linear(12, 12))
    return network


ROTATED = {
    'class token': Vit,
    'average of tokens': pooled,
    'odd width': lambda: Vit(width=14),
    'power of two': lambda: Vit(width=16),
    'factors of layers': lambda: Vit(block=Scaled),
    'moves and a number': lambda: Vit(block=Pieces),
    'root mean square': lambda: pooled(norm=nn.RMSNorm),
    'no bias for offsets': lambda: Vit(bias=False),
    'a layer without a norm': bare_reader,
    'in place': lambda: Vit(add=lambda x, y: y.add_(x)),
    'torch attention': lambda: torch_encoder(),
}


class Encoder(nn.TransformerEncoder):
    """Layers of torch behind an embedding, with a norm at the end."""

    def __init__(self):
        layer = nn.TransformerEncoderLayer(
            12, 2, 16, batch_first=True, norm_first=True
        )
        super().__init__(layer, 2, nn.LayerNorm(12), False)
        self.embed, self.head = nn.Conv2d(3, 12, 4, 4), nn.Linear(12, 5)

    def forward(self, x):
        x = self.embed(x).flatten(2).mT
        return self.head(super().forward(x)[:, 0])


def torch_encoder():
    return Encoder()


def hooked():
    network = Vit()
    network.blocks[0].fc2.register_forward_hook(lambda m, args, out: out + m.k)
    network.blocks[0].fc2.k = torch.arange(12.0)
    return network


def grouped():
    network = Vit()
    network.embed = nn.Conv2d(3, 12, 4, 4, groups=3)
    return network


def unsaved():
    network = Vit()
    position = network.position.data
    del network.position
    network.register_buffer('position', position, persistent=False)
    return network


def tied():
    """The class token is used a second time, outside of the stream."""

    class Tied(Vit):
        def forward(self, x):
            return super().forward(x) + self.token[0, :, :5].exp()

    return Tied()


def tied_norms():
    network = Vit()
    network.blocks[0].norm1.weight = network.norm.weight
    return network


STAYING = {
    'post-norm': (lambda: Vit(block=PostNorm), 'native_layer_norm in'),
    'gated': (lambda: Vit(block=Gated), 'sigmoid in blocks.0 reads it'),
    'a hook': (hooked, 'rotated, it changes the output'),
    'groups': (grouped, 'embed does not write 12 channels'),
    'not saved': (unsaved, 'a tensor that is no parameter'),
    'tied parameter': (tied, 'exp in the network reads it'),
    'tied norms': (tied_norms, 'not only layers read what blocks.0.norm1'),
    'normalized by groups': (
        lambda: Vit(norm=lambda c: Channels(2, c)),
        'rotated, it changes the output',
    ),
    'an output': (
        lambda: returns_stream(),
        'it is an output of the network',
    ),
    'no norm': (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()),
        'no residual stream that norms read, and no heads',
    ),
}


class Channels(nn.GroupNorm):
    """GroupNorm of tokens."""

    def forward(self, x):
        return super().forward(x.flatten(0, 1)).view_as(x)


def returns_stream():
    class Both(Vit):
        def forward(self, x):
            return self.head(self.norm(self.stream(x))[:, 0]), self.stream(x)

    return Both()


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def images():
    return torch.randn(24, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def said(monkeypatch):
    """What the log says."""
    lines = []
    logger = MMLogger.get_current_instance()
    monkeypatch.setattr(
        logger, 'handle', lambda record: lines.append(record.getMessage())
    )
    monkeypatch.setattr(logger, 'level', logging.INFO)
    return lines


def rotated(network, images, **options):
    """The float network, the rotated model, its teacher, and its norms."""
    model = BRECQ(
        network.eval(),
        dict(weight=dict(bits=4), activation=dict(bits=4)),
        reconstructor=NEAREST,
        **dict(dict(rotate=True), **options),
    ).eval()
    before = copy.deepcopy(network)
    teacher = model.prepare(images[:1])
    cached = CachedBatches(list(images.split(16)), [16, 8])
    return before, model, teacher, model.rotate_channels(teacher, cached)


@pytest.mark.parametrize('channels', [1, 2, 3, 4, 8, 14, 96, 97])
def test_a_rotation_is_orthogonal_and_keeps_what_is_constant(channels):
    matrix, one = rotation(channels), torch.eye(channels).double()
    assert torch.equal(matrix, rotation.__wrapped__(channels))
    assert torch.allclose(matrix @ matrix.mT, one)
    assert torch.allclose(matrix, matrix.mT)
    assert torch.allclose(matrix.sum(1), one.sum(1))
    if channels > 2:  # No channel stays, and none is most of another.
        assert matrix.abs().max() < min(0.7, 3.2 / channels**0.5)


@pytest.mark.parametrize('name', ROTATED)
def test_outputs_stay_and_outliers_go(name, images):
    network = ROTATED[name]()
    before, model, teacher, names = rotated(network, images)
    read = [n for n, _ in before.named_modules() if 'norm' in n or 'proj' in n]
    assert sorted(names) == sorted(read)
    for network in teacher, model.architecture:
        assert relative_difference(before, network, images) < 1e-5
    state = model.architecture.state_dict()
    for key, value in teacher.state_dict().items():
        assert torch.equal(value, state[key])
    assert not any(
        torch.equal(x, teacher.get_parameter(key))
        for key, x in before.named_parameters()
        if 'norm' in key and len({*x.tolist()}) > 1
    )


def test_no_channel_of_the_stream_is_an_outlier(images):
    before, _, teacher, _ = rotated(Vit(width=64), images)

    def largest(network):
        with torch.no_grad():
            channels = network.stream(images).flatten(0, 1).abs().amax(0)
        return channels.max() / channels.median()

    assert largest(before) > 10 and largest(teacher) < 4


@pytest.mark.parametrize('name', STAYING)
def test_what_does_not_allow_it_stays_and_is_named(name, images, said):
    make, reason = STAYING[name]
    network = make()
    before, model, teacher, names = rotated(network, images)
    assert not any('norm' in name for name in names)
    assert any(reason in line for line in said)
    assert bool(names) != any('Nothing is rotated' in line for line in said)
    for rotated_one in teacher, model.architecture:
        state = rotated_one.state_dict()
        for key, value in before.state_dict().items():
            if 'qkv' not in key and 'proj' not in key:
                assert torch.equal(state[key], value)
        assert relative_difference(before, rotated_one, images) < 1e-5


def test_streams_are_rotated_one_by_one(images, said):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = Vit(), Vit(block=Gated)

        def forward(self, x):
            return self.first(x) + self.second(x)

    before, _, teacher, names = rotated(Two(), images)
    norms = [n for n in names if 'norm' in n]
    assert len(norms) == 5 and all(n.startswith('first') for n in norms)
    assert any('second' in line and 'not rotated' in line for line in said)
    assert relative_difference(before, teacher, images) < 1e-5


def test_it_is_off_by_default(images):
    before, model, teacher, names = rotated(Vit(), images, rotate=False)
    assert names == [] and not BRECQ(Vit()).rotate
    for key, value in before.state_dict().items():
        assert torch.equal(teacher.state_dict()[key], value)


def test_streams_have_all_that_writes_and_reads(images):
    (stream,), reasons = find_streams(record(Vit(block=Scaled), images[:1]))
    assert not reasons and stream.channels == 12
    assert stream.added == {'token': 2, 'position': 2}
    assert stream.writers == {
        'embed': '',
        **{
            f'blocks.{i}.{name}': factor and f'blocks.{i}.{factor}'
            for i in (0, 1)
            for name, factor in (('proj', 'gamma'), ('fc2', ''))
        },
    }
    assert stream.readers == [] and len(stream.norms) == 5


class Heads(nn.Module):
    """Attention of 2 heads on 3 x 4 x 4 pixels, by a function."""

    def __init__(self, attend, heads=2):
        super().__init__()
        self.attend, self.heads = attend, heads
        self.embed = nn.Conv2d(3, 8, 1)
        self.q, self.v, self.proj = (nn.Linear(8, 8) for _ in range(3))
        self.mix, self.last = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 5)

    def weights(self, x):
        q = self.q(x).unflatten(-1, (2, 4)).transpose(-2, -3)
        return (q @ q.mT).softmax(-1)

    def split(self, v, heads=2):
        return v.unflatten(-1, (heads, -1)).transpose(-2, -3)

    def merge(self, x):
        return self.proj(x.transpose(-2, -3).flatten(-2))

    def forward(self, x):
        x = self.embed(x).flatten(2).mT
        return self.head((x + self.attend(self, x)).mean(1))


def plain(s, x):
    return s.merge(s.weights(x) @ s.split(s.v(x)))


def windows(s, x):
    x = x.unflatten(1, (2, 8)).roll(1, 1).flatten(0, 1)
    return plain(s, x).unflatten(0, (-1, 2)).flatten(1, 2)


def batch_of_heads(s, x):
    weights, v = s.weights(x), s.split(s.v(x))
    out = torch.bmm(weights.flatten(0, 1), v.flatten(0, 1))
    return s.merge(out.unflatten(0, (-1, 2)))


def convolutions(s, x):
    v = s.mix(x.mT.unflatten(2, (4, 4))).flatten(2).mT
    out = (s.weights(x) @ s.split(v)).transpose(1, 2).flatten(2)
    return s.last(out.mT.unflatten(2, (4, 4))).flatten(2).mT


def shuffled(s, x):
    """Channels of heads lie beside each other."""
    v = s.v(x).unflatten(-1, (4, 2)).permute(0, 3, 1, 2)
    out = (s.weights(x) @ v).permute(0, 2, 3, 1).flatten(2)
    return s.proj(out)


def curved(s, x):
    return s.merge(s.weights(x) @ s.split(s.v(x)).relu())


def curved_after(s, x):
    return s.merge((s.weights(x) @ s.split(s.v(x))).relu())


def shared_values(s, x):
    """All heads have the same values."""
    v = s.v(x)[:, None, :, :4].expand(-1, 2, -1, -1)
    return s.merge(s.weights(x) @ v)


def of_channels(s, x):
    """Attention of channels, which mixes those of a head."""
    weights = s.q(x)[:, :4].unflatten(-1, (2, 4)).transpose(1, 2).softmax(-1)
    return s.merge((weights @ s.split(s.v(x)).mT).mT)


def read_again(s, x):
    v = s.v(x)
    return s.merge(s.weights(x) @ s.split(v)) + v


def refused(s, x):
    """Its code looks at the values."""
    v = s.v(x)
    assert v.abs().max() < 6
    return s.merge(s.weights(x) @ s.split(v))


@pytest.mark.parametrize(
    'attend', [plain, windows, batch_of_heads, convolutions, shuffled]
)
def test_values_are_rotated_head_by_head(attend, images):
    images = images[..., :4, :4]
    before, model, teacher, names = rotated(Heads(attend), images)
    reader = 'last' if attend is convolutions else 'proj'
    writer = 'mix' if attend is convolutions else 'v'
    assert names == [reader]
    state = model.architecture.state_dict()
    for network in teacher, model.architecture:
        assert relative_difference(before, network, images) < 1e-5
    for key, value in before.state_dict().items():
        changes = f'{writer}.' in key or key == f'{reader}.weight'
        assert torch.equal(teacher.state_dict()[key], value) != changes
        assert torch.equal(teacher.state_dict()[key], state[key])


@pytest.mark.parametrize(
    'attend',
    [curved, curved_after, shared_values, of_channels, read_again, refused],
)
def test_values_that_something_else_uses_stay(attend, images, said):
    images = images[..., :4, :4]
    network = Heads(attend)
    before, _, teacher, names = rotated(network, images)
    assert names == []
    for key, value in before.state_dict().items():
        assert torch.equal(teacher.state_dict()[key], value)


def test_a_hook_that_curves_values_is_found(images, said):
    images = images[..., :4, :4]
    network = Heads(plain)
    network.v.register_forward_hook(lambda m, args, out: out.abs())
    _, _, _, names = rotated(network, images)
    assert names == []
    assert any('proj reads is not rotated' in line for line in said)


@pytest.mark.parametrize(
    'name, rotate',
    [
        ('class token', False),
        ('class token', True),
        ('factors of layers', True),
    ],
)
def test_a_quantized_network_is_saved_and_thawed(
    name, rotate, images, tmp_path
):
    network, path = ROTATED[name]().eval(), tmp_path / 'model.pth'
    _, model, teacher, norms = rotated(
        copy.deepcopy(network), images, rotate=rotate
    )
    assert len(norms) == 7 * rotate
    cached = CachedBatches(list(images.split(16)), [16, 8])
    model.equalize(teacher, cached)
    list(model.reconstruct(teacher, cached))
    mmrazor_brecq.save(model, str(path))
    loaded = mmrazor_brecq.load(network, str(path))
    assert torch.equal(loaded(images), model(images))
    # Who learns further begins at the float weights that were rounded.
    teacher = folded(model, network)
    assert relative_difference(network, teacher, images) < 1e-5
    for name, layer in quant_layers(model.architecture).items():
        weight = teacher.get_parameter(f'{name}.weight')
        # The observer cuts off what is large.
        assert (layer.weight - weight).norm() < 0.4 * weight.norm()
