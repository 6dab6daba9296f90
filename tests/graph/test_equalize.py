"""Ranges of channels move from norms to the layers that read them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import mmrazor_brecq
from mmrazor_brecq.activations import CachedBatches
from mmrazor_brecq.algorithms import BRECQ
from mmrazor_brecq.engine.fine_tuning import folded
from mmrazor_brecq.graph import find_read_norms, record, relative_difference
from mmrazor_brecq.layers import quant_layers

NEAREST = dict(type='NearestRounding', batch_size=8)


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of N x C x H x W."""

    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Reads(nn.Module):
    """A network of a norm, and a function that reads it: N x 6 x 8 tokens."""

    def __init__(self, read, norm=None, **parts):
        super().__init__()
        self.embed, self.head = nn.Linear(8, 8), nn.Linear(8, 5)
        self.norm = norm or nn.LayerNorm(8)
        self.read = read
        for name, part in parts.items():
            setattr(self, name, part)
        with torch.no_grad():
            for key, x in self.norm.named_parameters():
                x.copy_(torch.randn(8) + (key == 'weight'))
                x[:2] *= 10

    def forward(self, x):
        return self.head(self.read(self, self.embed(x)))


def linear(bias=True):
    return nn.Linear(8, 8, bias=bias)


def queries(s, x):
    y = s.norm(x)
    scores = (s.q(y) @ s.k(y).mT) / 1000
    return scores.softmax(-1) @ s.v(y.detach())


def windows(s, x):
    y = s.norm(x).roll(2, 1).unflatten(1, (2, 3)).flatten(0, 1)
    return s.a(y.contiguous()).unflatten(0, (-1, 2)).flatten(1, 2)


def padded(s, x):
    return s.a(F.pad(s.norm(x), (0, 0, 1, 1)))[:, 1:-1]


def pixels(s, x):
    y = s.norm(x.mT.unflatten(-1, (2, 3)))
    return s.a(y).flatten(2).mT


CASES = {
    'queries, keys and values': lambda: Reads(
        queries, q=linear(), k=linear(), v=linear()
    ),
    'torch attention': lambda: Reads(
        lambda s, x: s.a(*[s.norm(x)] * 3, need_weights=False)[0],
        a=nn.MultiheadAttention(8, 2, batch_first=True),
    ),
    'windows': lambda: Reads(windows, a=linear()),
    'one token': lambda: Reads(
        lambda s, x: x + s.a(s.norm(x)[:, 0])[:, None], a=linear()
    ),
    'convolution': lambda: Reads(
        pixels, norm=ChannelNorm(8), a=nn.Conv2d(8, 8, 1)
    ),
    'group norm': lambda: Reads(
        pixels, norm=nn.GroupNorm(2, 8), a=nn.Conv2d(8, 8, (2, 3))
    ),
    'two norms of one class': lambda: Reads(
        lambda s, x: s.a(s.norm(x)) + s.b(s.norm(2 * x)),
        a=linear(),
        b=linear(),
    ),
}
SCALES_ONLY = {
    'zeros beside it': lambda: Reads(padded, a=linear()),
    'zeros of a convolution': lambda: Reads(
        pixels, norm=ChannelNorm(8), a=nn.Conv2d(8, 8, 3, padding=1)
    ),
    'no bias of the layer': lambda: Reads(
        lambda s, x: s.a(s.norm(x)), a=linear(bias=False)
    ),
    'no bias of the norm': lambda: Reads(
        lambda s, x: s.a(s.norm(x)), norm=nn.RMSNorm(8), a=linear()
    ),
}


def residual(s, x):
    y = s.norm(x)
    return y + s.a(y)


def twice(s, x):
    return s.a(s.norm(x)) + s.a(x)


def written(s, x):
    y = s.norm(x)
    y[:, 0] = 0
    return s.a(y)


def transposed(s, x):
    return s.a(s.norm(x.mT).mT)


STAYING = {
    'a shortcut reads it': lambda: Reads(residual, a=linear()),
    'the layer reads more': lambda: Reads(twice, a=linear()),
    'written to': lambda: Reads(written, a=linear()),
    'a function between': lambda: Reads(
        lambda s, x: s.a(s.norm(x).relu()), a=linear()
    ),
    'channels split': lambda: Reads(
        lambda s, x: s.a(s.norm(x).unflatten(-1, (2, 4))).flatten(2),
        a=nn.Linear(4, 4),
    ),
    'groups': lambda: Reads(
        pixels, norm=ChannelNorm(8), a=nn.Conv2d(8, 8, 1, groups=8)
    ),
    'no norm': lambda: Reads(transposed, norm=nn.PReLU(8), a=linear()),
    'a hook between': lambda: hooked(),
    'one weight for both': lambda: tied(),
}


def hooked():
    network = CASES['windows']()
    network.a.register_forward_pre_hook(lambda m, args: (args[0] + 1,))
    return network


def tied():
    network = Reads(lambda s, x: s.a(s.norm(x)) + s.b(x), a=linear())
    network.b = nn.LayerNorm(8)
    network.b.weight = network.norm.weight
    return network


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def tokens():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(24, 6, 8, generator=generator)


def equalized(network, tokens, bits=4, **options):
    """The float network, the equalized one, and the names of its norms."""
    model = BRECQ(
        network.eval(),
        dict(weight=dict(bits=8), activation=dict(bits=bits)),
        reconstructor=NEAREST,
        **options,
    ).eval()
    before = copy.deepcopy(network)
    teacher = model.prepare(tokens[:1])
    cached = CachedBatches(list(tokens.split(16)), [16, 8])
    return before, model, teacher, model.equalize(teacher, cached)


@pytest.mark.parametrize('name', [*CASES, *SCALES_ONLY])
def test_outputs_stay_and_channels_have_one_range(name, tokens):
    network = {**CASES, **SCALES_ONLY}[name]()
    before, model, teacher, names = equalized(network, tokens)
    assert names == ['norm']
    for rewritten in teacher, model.architecture:
        assert relative_difference(before, rewritten, tokens) < 1e-5
    # Both have the same values, to the last bit.
    state = model.architecture.state_dict()
    for key, value in teacher.state_dict().items():
        assert torch.equal(value, state[key])
    seen = []
    teacher.norm.register_forward_hook(lambda m, args, out: seen.append(out))
    with torch.no_grad():
        teacher(tokens)
    axis = 1 if seen[0].dim() == 4 else -1
    channels = seen[0].movedim(axis, 0).flatten(1)
    low, high = channels.quantile(0.02, 1), channels.quantile(0.98, 1)
    width = high - low if name in CASES else channels.abs().amax(1)
    assert width.max() < 4 * width.min()
    if name in CASES:
        assert ((low + high).abs() < 0.5 * width).all()


@pytest.mark.parametrize('name', STAYING)
def test_what_something_else_reads_stays(name, tokens):
    network = STAYING[name]()
    state = copy.deepcopy(network.state_dict())
    before, model, teacher, names = equalized(network, tokens)
    assert 'norm' not in names
    for key, value in state.items():
        assert torch.equal(teacher.state_dict()[key], value)


def test_batch_norms_and_outputs_stay(toy, tokens):
    for network, x in (
        (toy('residual'), torch.randn(2, 3, 8, 8)),
        (nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8)), tokens),
        (Reads(transposed, norm=nn.BatchNorm1d(8), a=linear()), tokens),
    ):
        assert find_read_norms(network, record(network.eval(), x)) == []


@pytest.mark.parametrize(
    'options, quantization',
    [
        (dict(equalize_norms=False), {}),
        ({}, dict(activation=None)),
        ({}, dict(bit_overrides={'a': dict(activation=None)})),
    ],
)
def test_nothing_changes_where_it_is_off(tokens, options, quantization):
    network = CASES['windows']()
    state = copy.deepcopy(network.state_dict())
    model = BRECQ(network.eval(), quantization, **options).eval()
    teacher = model.prepare(tokens[:1])
    cached = CachedBatches(list(tokens.split(16)), [16, 8])
    assert model.equalize(teacher, cached) == []
    for key, value in state.items():
        assert torch.equal(model.architecture.state_dict()[key], value)


@pytest.mark.parametrize('broken', [1, 24])
def test_images_with_nan_have_no_say(tokens, broken):
    network = CASES['windows']()
    before = copy.deepcopy(network.eval())
    model = BRECQ(network, dict(activation=dict(bits=4))).eval()
    teacher = model.prepare(tokens[:1])
    images = tokens.clone()
    images[1:broken, 0, 0] = torch.nan
    images[-1] = torch.inf
    model.equalize(teacher, CachedBatches([images], [24]))
    assert relative_difference(before, teacher, tokens) < 1e-5


@pytest.mark.parametrize('bits', [(8, 4), (4, 4), (3, 8)])
def test_a_network_with_outliers_comes_nearer_to_float(bits, tokens):
    def error(equalize):
        torch.manual_seed(0)
        model = BRECQ(
            CASES['windows']().eval(),
            dict(
                weight=dict(bits=bits[0]),
                activation=dict(bits=bits[1]),
                first_last_bits=None,
                bit_overrides={name: None for name in ('embed', 'head')},
            ),
            reconstructor=NEAREST,
            equalize_norms=equalize,
        ).eval()
        cached = CachedBatches(list(tokens.split(16)), [16, 8])
        teacher = model.prepare(tokens[:1])
        model.equalize(teacher, cached)
        list(model.reconstruct(teacher, cached))
        return (model(tokens) - teacher(tokens)).square().mean()

    assert error(True) < 0.5 * error(False)


def test_a_quantized_network_is_saved_and_thawed(tokens, tmp_path):
    network, path = CASES['torch attention']().eval(), tmp_path / 'model.pth'
    state = copy.deepcopy(network.state_dict())
    model, _ = mmrazor_brecq.quantize(
        network, tokens, 4, 4, reconstructor=NEAREST
    )
    for key, value in state.items():
        assert torch.equal(network.state_dict()[key], value)
    mmrazor_brecq.save(model, str(path))
    loaded = mmrazor_brecq.load(network, str(path))
    assert torch.equal(loaded(tokens), model(tokens))
    # Who learns further begins at the float weights that were rounded.
    teacher = folded(model, network)
    assert relative_difference(network, teacher, tokens) < 1e-5
    for name, layer in quant_layers(model.architecture).items():
        weight = teacher.get_parameter(f'{name}.weight')
        error = (layer.weight - weight).abs().amax(1)
        assert (error <= 0.75 * layer.weight_quantizer.scale).all()
