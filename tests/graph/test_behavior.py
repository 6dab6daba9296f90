"""Networks whose behavior is refused, or named in a warning."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import mmrazor_brecq
from mmrazor_brecq.graph import check_behavior, check_layers, record
from mmrazor_brecq.reconstruction import BlockReconstructor


class Odd(nn.Module):
    """Two layers; subclasses do something unusual between them."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.between = nn.Identity()
        self.last = nn.Linear(4, 5)

    def forward(self, x):
        x = self.odd(self.first(x))
        return self.last(self.between(x).mean((2, 3)))

    def odd(self, x):
        return x


class Dropout(Odd):
    def odd(self, x):
        return F.dropout(x, 0.5, training=True)


class StochasticDepth(Odd):
    def odd(self, x):
        return x * (torch.rand(len(x), 1, 1, 1) < 0.5)


class OwnGenerator(Odd):
    """Network whose random numbers do not come from the global state."""

    def __init__(self):
        super().__init__()
        self.generator = [torch.Generator().manual_seed(0)]

    def odd(self, x):
        return x + torch.randn(x.shape, generator=self.generator[0])


class LayerDrop(Odd):
    """Network that calls a module in every other pass."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        x = self.first(x)
        if self.calls % 2:
            x = self.between(x)
        return self.last(x.mean((2, 3)))


class OtherLayer(Odd):
    """Network that calls another layer from its third pass on."""

    def __init__(self):
        super().__init__()
        self.calls = 0
        self.other = nn.Linear(4, 5)

    def forward(self, x):
        self.calls += 1
        layer = self.last if self.calls < 3 else self.other
        return layer(self.first(x).mean((2, 3)))


class ByData(OtherLayer):
    """Network that calls another layer if the first image is dark."""

    def forward(self, x):
        layer = self.last if x[0].mean() > 0 else self.other
        return layer(self.first(x).mean((2, 3)))


class Stubborn(Odd):
    def train(self, mode=True):
        super().train(mode)
        self.between.train(True)
        return self


class Counter(Odd):
    def __init__(self):
        super().__init__()
        self.register_buffer('count', torch.zeros(()))

    def odd(self, x):
        self.count += 1
        return x


class Replaced(Counter):
    def odd(self, x):
        self.count = self.count + 1
        return x


class Centered(Odd):
    def odd(self, x):
        return x - x[:1]


class Writes(Odd):
    def forward(self, x):
        return super().forward(x.mul_(2))


class Norm(Odd):
    def __init__(self, **kwargs):
        super().__init__()
        self.between = nn.BatchNorm2d(4, **kwargs)


@pytest.fixture
def images(generator):
    images = torch.randn(8, 3, 6, 6, generator=generator)
    images[::2] += 1
    images[1::2] -= 1
    return images


def check(network, images):
    network.eval()
    recording = record(network, images[:1])
    check_layers(network, recording)
    check_behavior(network, images, recording)


@pytest.mark.parametrize(
    ('kind', 'words'),
    [
        (Dropout, 'Dropout gives something else for the same input'),
        (StochasticDepth, 'gives something else for the same input'),
        (OwnGenerator, 'gives something else for the same input'),
        (Counter, "'count' changes in each forward pass"),
        (Replaced, "'count' changes in each forward pass"),
        (Centered, 'depends on the images beside it'),
        (Writes, 'writes to the images'),
        (lambda: Norm(track_running_stats=False), 'between has no running'),
    ],
)
def test_behavior_that_spoils_results_is_warned_of(
    kind, words, images, warnings_log
):
    check(kind(), images)
    assert any(words in message for message in warnings_log), warnings_log


@pytest.mark.parametrize(
    ('kind', 'words'),
    [
        (LayerDrop, "other modules from one pass to the next.*'between'"),
        (OtherLayer, "other modules.*'last', 'other'"),
        (ByData, "other modules.*'last', 'other'"),
        (Stubborn, "'between' stays in training mode"),
    ],
)
def test_networks_that_cannot_be_reconstructed_are_refused(
    kind, words, images
):
    with pytest.raises(ValueError, match=words):
        check(kind(), images)


@pytest.mark.parametrize('count', [1, 2, 3])
def test_ordinary_networks_pass_without_a_warning(
    each_toy, count, warnings_log
):
    images = torch.randn(count, 3, 8, 8, generator=torch.Generator())
    network = each_toy.eval()
    check_behavior(network, images, record(network, images[:1]))

    assert not warnings_log
    for module in network.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks


def broken(key, value):
    def build():
        network = Norm()
        *path, name = key.split('.')
        with torch.no_grad():
            getattr(network.get_submodule('.'.join(path)), name)[1] = value
        return network

    return build


@pytest.mark.parametrize(
    ('key', 'value'),
    [
        (key, value)
        for key in (
            *('first.weight', 'first.bias', 'last.bias', 'between.weight'),
            *('between.bias', 'between.running_mean', 'between.running_var'),
        )
        for value in (float('nan'), float('inf'), -float('inf'), 1e38)
    ]
    + [('between.running_var', -0.5)],
)
def test_values_that_are_not_finite_or_too_large_are_refused(
    key, value, images
):
    module, name = key.split('.')
    with pytest.raises(ValueError, match=f"The {name} of '{module}' holds"):
        check(broken(key, value)(), images)


def test_a_variance_of_zero_is_warned_of(images, warnings_log):
    check(broken('between.running_var', 0.0)(), images)
    (warning,) = warnings_log
    assert "1 channels of 'between' have a running_var of 0" in warning


def test_dead_channels_of_many_modules_are_one_warning(images, warnings_log):
    network = nn.Sequential(
        *(nn.Conv2d(3, 3, 1) for _ in range(4)), *(nn.Conv2d(3, 3, 3),)
    )
    for layer in network[:3]:
        nn.init.zeros_(layer.weight[:2])
    check(network, images)
    (warning,) = warnings_log
    assert "6 channels of '0' and 2 more modules" in warning


def test_a_mask_may_be_infinite(images, warnings_log):
    network = Odd()
    network.register_buffer('mask', torch.tensor([0.0, -torch.inf]))
    check(network, images)
    assert not warnings_log


def test_the_error_names_the_first_module_that_gives_nan(images):
    class Root(Odd):
        def __init__(self):
            super().__init__()
            self.between = nn.ReLU()

        def odd(self, x):
            return (x - 100).sqrt()

    with pytest.raises(ValueError, match="NaN .*from 'Root' on|NaN .*'Root'"):
        check(Root(), images)


def test_a_random_network_leaves_the_callers_random_state(images):
    network = Dropout().eval()
    recording = record(network, images[:1])
    before = torch.get_rng_state()
    check_behavior(network, images, recording)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize('kind', [Odd, Norm, Counter, Writes])
def test_nothing_of_the_callers_network_is_changed(kind, images):
    """Values, requires_grad, modes, hooks, memory formats, random state."""
    network = kind().train()
    network.first.weight.requires_grad_(False)
    network.last.eval()
    network.first.to(memory_format=torch.channels_last)
    seen = []
    network.last.register_forward_hook(lambda *_: seen.append(1))
    state = copy.deepcopy(network.state_dict())
    strides = [p.stride() for p in network.parameters()]
    flags = [p.requires_grad for p in network.parameters()]
    modes = [m.training for m in network.modules()]
    hooks = [
        (len(m._forward_hooks), len(m._forward_pre_hooks))
        for m in network.modules()
    ]
    pixels, chance = images.clone(), torch.get_rng_state()

    mmrazor_brecq.quantize(
        network,
        images,
        reconstructor=dict(
            type=BlockReconstructor.__name__, iterations=2, batch_size=4
        ),
    )
    assert torch.equal(images, pixels) and not images.requires_grad
    assert torch.equal(torch.get_rng_state(), chance)
    for key, value in network.state_dict().items():
        assert torch.equal(value, state[key]), key
    assert [p.stride() for p in network.parameters()] == strides
    assert [p.requires_grad for p in network.parameters()] == flags
    assert all(p.grad is None for p in network.parameters())
    assert [m.training for m in network.modules()] == modes
    assert hooks == [
        (len(m._forward_hooks), len(m._forward_pre_hooks))
        for m in network.modules()
    ]
