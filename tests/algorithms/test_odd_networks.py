"""Networks whose weights, norms and hooks are not as the textbook has them.

Each is quantized to eight bits, which cost little, and whatever could not
be folded or quantized is named; a file brings the same network back.
"""

from __future__ import annotations

import copy
import functools
import re
import types
import warnings

import pytest
import torch
from mmcv.cnn.bricks import build_conv_layer
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune

import mmrazor_brecq
from mmrazor_brecq.layers import quant_layers

NEAREST = dict(type='NearestRounding')


class Net(nn.Module):
    """Convolution, norm, ReLU three times; then a linear layer."""

    def __init__(self):
        super().__init__()
        for i, inner in enumerate((3, 8, 8)):
            conv = nn.Conv2d(inner, 8, 3, padding=1, bias=False)
            self.add_module(f'c{i}', conv)
            self.add_module(f'b{i}', nn.BatchNorm2d(8))
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        x = self.b0(self.c0(x)).relu()
        x = self.b1(self.c1(x)).relu()
        x = self.b2(self.c2(x)).relu()
        return self.fc(x.mean((2, 3)))


@pytest.fixture
def images(generator):
    return torch.randn(16, 3, 6, 6, generator=generator)


def settle(network, images):
    """Statistics and gains as training leaves them."""
    network.train()
    with torch.no_grad():
        for _ in range(20):
            network(images + 0.3)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.3, 2)
                module.bias.uniform_(-1, 1)
    return network.eval()


def ratio(expected, found):
    """Signal to error, in dB."""
    error = (expected - found).square().mean().clamp(min=1e-30)
    return float(10 * torch.log10(expected.square().mean() / error))


def times_two(module, args, output):
    return output * 2


def in_place(module, args, output):
    output.mul_(2)


def tied(network):
    network.c2.weight = network.c1.weight


def same_memory(network):
    network.c2.weight = nn.Parameter(network.c1.weight.data)


def tied_transposed(network):
    network.c1, network.b1 = nn.Linear(8, 8, bias=False), nn.BatchNorm2d(8)
    network.c2 = nn.Linear(8, 8, bias=False)
    network.c2.weight = nn.Parameter(network.c1.weight.t())
    for conv in network.c1, network.c2:
        conv.register_forward_pre_hook(
            lambda module, args: (args[0].permute(0, 2, 3, 1),)
        )
        conv.register_forward_hook(
            lambda module, args, out: out.permute(0, 3, 1, 2)
        )


def standardized(network):
    network.c1 = build_conv_layer(
        dict(type='ConvWS'), 8, 8, 3, padding=1, bias=False
    )


class Halved(nn.Conv2d):
    def forward(self, x):
        return self._conv_forward(x, self.weight, self.bias) / 2 + 1


def overridden(network):
    network.c1 = Halved(8, 8, 3, padding=1)


def hook_on_layer(network):
    network.c1.register_forward_hook(times_two)


def hook_in_place(network):
    network.c1.register_forward_hook(in_place)


def hook_before_layer(network):
    network.c1.register_forward_pre_hook(lambda module, args: args[0] + 0.5)


def hook_before_norm(network):
    network.b1.register_forward_pre_hook(lambda module, args: args[0] * 2)


def hook_before_norm_in_place(network):
    network.b1.register_forward_pre_hook(
        lambda module, args: (
            args[0].mul_(2) and None if False else (args[0].mul_(2),)
        )
    )


def hook_on_norm(network):
    network.b1.register_forward_hook(times_two)


def hook_reads_norm(network):
    network.b1.register_forward_hook(
        lambda module, args, out: out * module.weight.view(1, -1, 1, 1)
    )


def norm_twice(network):
    network.b2 = network.b1


def norm_under_two_names(network):
    """The forward pass goes through the second one."""
    network.late = nn.Sequential(network.c1, network.b1)

    def forward(self, x):
        x = self.late(self.b0(self.c0(x)).relu()).relu()
        x = self.b2(self.c2(x)).relu()
        return self.fc(x.mean((2, 3)))

    network.__class__ = type('Named', (Net,), dict(forward=forward))


def norm_read_elsewhere(network):
    def forward(self, x):
        return Net.forward(self, x) * self.b1.running_var.sum()

    network.__class__ = type('Reads', (Net,), dict(forward=forward))


def weight_read_elsewhere(network):
    """A penalty, a decoder that is tied to its encoder, or the like."""

    def forward(self, x):
        y = Net.forward(self, x)
        return (
            y
            + F.conv2d(
                x.mean(1, True).expand(-1, 8, -1, -1), self.c1.weight
            ).mean((2, 3))[:, :5]
        )

    network.__class__ = type('Decodes', (Net,), dict(forward=forward))


def type_read_elsewhere(network):
    def forward(self, x):
        x = self.b0(self.c0(x)).relu().to(self.c1.weight.dtype)
        x = self.b1(self.c1(x)).relu()
        x = self.b2(self.c2(x)).relu().mean((2, 3))
        return self.fc(x.to(self.fc.weight.dtype))

    network.__class__ = type('Casts', (Net,), dict(forward=forward))


def tied_decoder(network):
    def forward(self, x):
        x = self.b0(self.c0(x)).relu()
        x = self.b1(self.c1(x)).relu().mean((2, 3))
        return F.linear(self.fc(x), self.fc.weight.t())

    network.__class__ = type('Autoencoder', (Net,), dict(forward=forward))


def weight_norm(network):
    nn.utils.weight_norm(network.c1)


def weight_norm_of_all(network):
    for module in list(network.modules()):
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.utils.weight_norm(module)


def spectral_norm(network):
    nn.utils.spectral_norm(network.c1)


def parametrized_weight_norm(network):
    parametrizations.weight_norm(network.c1)


def parametrized_spectral_norm(network):
    parametrizations.spectral_norm(network.c1)


def parametrized_orthogonal(network):
    parametrizations.orthogonal(network.fc)


class Symmetric(nn.Module):
    def forward(self, weight):
        return weight + weight.transpose(0, 1)


def parametrized_twice(network):
    parametrize.register_parametrization(network.c1, 'weight', Symmetric())
    parametrizations.weight_norm(network.c2)
    parametrizations.spectral_norm(network.c2)


def parametrized_and_tied(network):
    parametrize.register_parametrization(network.c1, 'weight', Symmetric())
    parametrize.register_parametrization(network.c2, 'weight', Symmetric())
    lists = [conv.parametrizations.weight for conv in (network.c1, network.c2)]
    lists[1].original = lists[0].original


def parametrized_and_frozen(network):
    parametrizations.weight_norm(network.c1)
    network.requires_grad_(False)


def pruned(network):
    for name in 'c1', 'c2', 'fc':
        prune.l1_unstructured(getattr(network, name), 'weight', 0.5)


def pruned_again(network):
    prune.l1_unstructured(network.c1, 'weight', 0.5)
    prune.ln_structured(network.c1, 'weight', 0.25, n=2, dim=0)


def pruned_and_tied(network):
    network.c2.weight = network.c1.weight
    prune.l1_unstructured(network.c1, 'weight', 0.5)


def weight_norm_pruned(network):
    nn.utils.weight_norm(network.c1)
    prune.l1_unstructured(network.c1, 'weight_v', 0.5)


def own_forward(network):
    def forward(self, x):
        return F.conv2d(x, self.weight, self.bias, padding=1) * 3

    network.c1.forward = types.MethodType(forward, network.c1)


def own_forward_of_old(network):
    """A closure: in a copy it would call the original."""
    old = network.c1.forward
    network.c1.forward = lambda x: old(x) * 3


def accelerated(network):
    """As accelerate wraps the forward of each module."""

    def new_forward(module, *args, **kwargs):
        return module._old_forward(*args, **kwargs)

    for module in list(network.modules()):
        if not list(module.children()):
            module._old_forward = module.forward
            module.forward = functools.update_wrapper(
                functools.partial(new_forward, module), module.forward
            )


class Hyper(nn.Module):
    """A convolution whose weight others set, and no parameter."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.base = nn.Parameter(self.conv.weight.detach().clone())
        del self.conv.weight

    def forward(self, x):
        self.conv.weight = self.base * 2
        return self.conv(x)


def weight_set_by_others(network):
    network.c1 = Hyper()


def given_by_name(network):
    def forward(self, x):
        x = self.b0(self.c0(input=x)).relu()
        x = self.b1(input=self.c1(input=x)).relu()
        return self.fc(input=x.mean((2, 3)))

    network.__class__ = type('Keywords', (Net,), dict(forward=forward))


def detached_read(network):
    """Statistics that some code takes along the way."""

    def forward(self, x):
        self.seen = self.c1.weight.detach().abs().max()
        return Net.forward(self, x)

    network.__class__ = type('Looks', (Net,), dict(forward=forward))


#: What is done to a network, and the words of the one warning, if any.
CASES = {
    tied: None,
    same_memory: None,
    tied_transposed: None,
    standardized: 'b1 stays.*into c1',
    overridden: 'b1 stays.*into c1',
    hook_on_layer: 'b1 stays.*into c1',
    hook_in_place: 'b1 stays.*into c1',
    hook_before_layer: None,
    hook_before_norm: None,
    hook_before_norm_in_place: None,
    hook_on_norm: None,
    hook_reads_norm: 'b1 stays',
    norm_twice: None,
    norm_under_two_names: None,
    norm_read_elsewhere: 'b1 stays',
    weight_read_elsewhere: None,
    type_read_elsewhere: None,
    tied_decoder: 'c2 is not called',
    weight_norm: None,
    weight_norm_of_all: None,
    spectral_norm: None,
    parametrized_weight_norm: None,
    parametrized_spectral_norm: None,
    parametrized_orthogonal: None,
    parametrized_twice: None,
    parametrized_and_tied: None,
    parametrized_and_frozen: None,
    pruned: None,
    pruned_again: "2 channels of 'c1' have weights of zeros",
    pruned_and_tied: None,
    weight_norm_pruned: None,
    own_forward: 'b1 stays',
    own_forward_of_old: 'c1 is a layer whose forward.*own weight',
    accelerated: None,
    weight_set_by_others: 'c1.conv is a layer.*own.*c1.base is a parameter',
    given_by_name: 'c2 is not called',
    detached_read: None,
}


def build(change, images):
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter('ignore', FutureWarning)
        torch.manual_seed(0)
        network = Net()
        change(network)
        return settle(network, images)


@pytest.mark.parametrize('change', CASES, ids=lambda case: case.__name__)
def test_an_odd_network_is_quantized_rightly(
    change, images, tmp_path, warnings_log
):
    network = build(change, images)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    with torch.no_grad():
        expected = network(images)
    model, report = mmrazor_brecq.quantize(
        network, images, 8, 8, reconstructor=NEAREST
    )
    with torch.no_grad():
        found = model(images)

    assert ratio(expected, found) > 30
    said = [line for line in warnings_log if not line.startswith('16 images')]
    words = CASES[change]
    assert bool(said) == (words is not None), said
    assert words is None or re.search(words, ' '.join(said))
    assert report['account']['layers'] == sum(
        isinstance(m, (nn.Conv2d, nn.Linear))
        for m in model.architecture.modules()
    )
    # The caller's network is as it was.
    after = network.state_dict()
    assert all(torch.equal(after[k], before[k]) for k in before)
    with torch.no_grad():
        assert torch.equal(network(images), expected)

    # And one that was built anew takes the state, whatever its weights.
    path = str(tmp_path / 'q.pth')
    mmrazor_brecq.save(model, path)
    fresh = build(change, images + 1)
    other = mmrazor_brecq.load(fresh, path)
    with torch.no_grad():
        assert torch.equal(other(images), found)
    assert other.state_dict().keys() == model.state_dict().keys()
    assert set(quant_layers(other)) == set(quant_layers(model))


def test_a_state_tells_what_was_folded_whatever_the_network(images, tmp_path):
    """The hook that kept a norm from folding is gone, or came later."""
    path = str(tmp_path / 'q.pth')
    plain, hooked = (build(c, images) for c in (tied, hook_on_layer))
    for one, other in (plain, hooked), (hooked, plain):
        model, _ = mmrazor_brecq.quantize(
            one, images, 8, 8, reconstructor=NEAREST
        )
        mmrazor_brecq.save(model, path)
        again = mmrazor_brecq.load(other, path)
        keys = set(model.state_dict())
        assert set(again.state_dict()) == keys
        stays = 'architecture.b1.running_mean' in keys
        assert stays == (one is hooked)


def test_a_layer_that_was_left_in_float_stays_so(images, tmp_path):
    """In a network in which nothing speaks against quantizing it."""
    path = str(tmp_path / 'q.pth')
    model, report = mmrazor_brecq.quantize(
        build(own_forward_of_old, images), images, reconstructor=NEAREST
    )
    assert list(report['account']['left_float']) == ['c1']
    mmrazor_brecq.save(model, path)
    again = mmrazor_brecq.load(build(lambda network: None, images), path)

    assert set(again.state_dict()) == set(model.state_dict())
    assert 'architecture.c1' not in quant_layers(again)


@pytest.mark.parametrize('change', [weight_norm, spectral_norm])
def test_a_network_whose_weight_carries_gradients(change, images):
    """As a call outside of ``no_grad`` leaves it: it cannot be copied."""
    network = build(change, images)
    network(images)
    with pytest.raises(RuntimeError, match='deepcopy'):
        copy.deepcopy(network)
    with torch.no_grad():
        expected = network(images)
    network(images)
    model, _ = mmrazor_brecq.quantize(
        network, images, 8, 8, reconstructor=NEAREST
    )
    with torch.no_grad():
        assert ratio(expected, model(images)) > 30
    assert network.c1.weight.grad_fn is not None


@pytest.mark.parametrize(
    'reconstructor',
    [
        dict(type='BlockReconstructor', iterations=20, batch_size=16),
        dict(
            type='BlockReconstructor',
            iterations=4,
            batch_size=16,
            refiner=dict(
                type='NetworkRefiner', iterations=20, rounding_lr=0.3
            ),
        ),
    ],
    ids=['units', 'refined'],
)
@pytest.mark.parametrize('removed', [False, True])
def test_pruned_weights_stay_zero(reconstructor, removed, images):
    """However the rounding of the others moves."""
    network = build(pruned, images)
    if removed:
        for name in 'c1', 'c2', 'fc':
            prune.remove(getattr(network, name), 'weight')
    model, report = mmrazor_brecq.quantize(
        network, images, 3, 4, reconstructor=reconstructor
    )
    assert any(unit['accepted'] for unit in report['units'])
    for name in 'c1', 'c2', 'fc':
        layer = model.architecture.get_submodule(name)
        zero = getattr(network, name).weight == 0
        assert zero.float().mean() == 0.5
        assert (layer.weight[zero] == 0).all()
        offset = layer.weight_quantizer.zero_point
        offset = offset.view(-1, *[1] * (zero.dim() - 1)).expand(zero.shape)
        assert torch.equal(layer.stored_weight[zero], offset[zero])
        assert (layer.weight[~zero] != 0).any()


class Noisy(nn.Module):
    """No constant can stand for it."""

    calls = 0

    def forward(self, weight):
        self.calls += 1
        return weight * self.calls


def test_a_weight_that_is_no_constant_is_refused_by_name(images):
    network = Net().eval()
    parametrize.register_parametrization(network.c1, 'weight', Noisy())

    with pytest.raises(ValueError, match=r'computes c1\.weight anew'):
        mmrazor_brecq.quantize(network, images, reconstructor=NEAREST)
