from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops import FrozenBatchNorm2d

from mmrazor_brecq.graph import fold_batch_norm, record, run_float


class Net(nn.Module):
    """Network made of a forward function and its parts."""

    def __init__(self, run, **parts):
        super().__init__()
        self.run = run
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x):
        return self.run(self, x)


def conv(inner=3, outer=4, **kwargs):
    return nn.Conv2d(inner, outer, 3, padding=1, **kwargs)


def randomize(network):
    """Give norms statistics and weights that change every channel."""
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if hasattr(module, 'running_var'):
            values = [module.running_mean, module.running_var]
            for value in values + [module.weight, module.bias]:
                if value is not None:
                    value.data.uniform_(0.5, 2.0, generator=generator)
    return network.eval()


def folded(network, x):
    """Fold; return the names of the norms and the largest difference."""
    randomize(network)
    original = copy.deepcopy(network)
    names = fold_batch_norm(network, record(network, x))
    with torch.no_grad():
        outs = [run_float(net, x) for net in (original, network)]
    outs = [out if isinstance(out, tuple) else (out,) for out in outs]
    difference = max(
        float((a - b).abs().max() / a.abs().max()) for a, b in zip(*outs)
    )
    return names, difference


FOLDS = dict(
    plain=dict(conv=conv(), bn=nn.BatchNorm2d(4)),
    biased=dict(conv=conv(bias=True), bn=nn.BatchNorm2d(4)),
    grouped=dict(conv=conv(3, 6, groups=3), bn=nn.BatchNorm2d(6)),
    dilated=dict(
        conv=nn.Conv2d(3, 4, 3, padding=2, dilation=2), bn=nn.BatchNorm2d(4)
    ),
    reflected=dict(conv=conv(padding_mode='reflect'), bn=nn.BatchNorm2d(4)),
    no_affine=dict(conv=conv(), bn=nn.BatchNorm2d(4, affine=False)),
    large_eps=dict(conv=conv(), bn=nn.BatchNorm2d(4, eps=0.3)),
    synchronized=dict(conv=conv(), bn=nn.SyncBatchNorm(4)),
    frozen=dict(conv=conv(), bn=FrozenBatchNorm2d(4, eps=0.1)),
    instance=dict(
        conv=conv(),
        bn=nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
    ),
)


@pytest.mark.parametrize('name', FOLDS)
def test_a_norm_after_a_convolution_folds(name, batches):
    parts = copy.deepcopy(FOLDS[name])
    network = Net(lambda self, x: self.bn(self.conv(x)), **parts)
    names, difference = folded(network, batches[0])

    assert names == ['bn']
    assert difference < 1e-5
    assert isinstance(network.bn, nn.Identity)
    assert network.conv.bias is not None


def test_a_norm_after_a_linear_layer_folds(batches):
    network = nn.Sequential(
        nn.Flatten(), nn.Linear(192, 6, bias=False), nn.BatchNorm1d(6)
    )
    names, difference = folded(network, batches[0])

    assert names == ['2'] and difference < 1e-5


def test_norms_of_one_and_three_dimensions_fold(batches):
    x = torch.randn(2, 3, 4, 5, 6)
    network = nn.Sequential(nn.Conv3d(3, 4, 1), nn.BatchNorm3d(4))
    assert folded(network, x)[0] == ['1']

    network = nn.Sequential(nn.Conv1d(3, 4, 1), nn.BatchNorm1d(4))
    names, difference = folded(network, x.flatten(2))
    assert names == ['1'] and difference < 1e-5


def test_a_pair_that_is_called_twice_folds_once(batches):
    network = Net(
        lambda self, x: self.bn(self.conv(x)) + self.bn(self.conv(-x)),
        conv=conv(),
        bn=nn.BatchNorm2d(4),
    )
    names, difference = folded(network, batches[0])

    assert names == ['bn'] and difference < 1e-5


@pytest.mark.parametrize(
    ('name', 'count'),
    dict(
        residual=6,
        inverted=7,
        grouped=4,
        shared=3,
        nested=1,
        transformer=0,
        uncalled=1,
        transposed=1,
    ).items(),
)
def test_folding_a_toy_keeps_its_output(name, count, toy, batches):
    network = toy(name)
    names, difference = folded(network, batches[0])

    assert len(names) == count
    assert difference < 1e-5


def relu_between(self, x):
    return self.bn(F.relu_(self.conv(x)))


def module_between(self, x):
    return self.bn(self.act(self.conv(x)))


def arithmetic_between(self, x):
    return self.bn(self.conv(x) * 1.5)


def norm_first(self, x):
    return self.conv(self.bn(x))


def used_by_a_layer_too(self, x):
    x = self.conv(x)
    return self.bn(x) + self.other(x)


def used_by_a_function_too(self, x):
    """The shortcut of a pre-activation block."""
    x = self.conv(x)
    return x + self.other(self.bn(x))


def used_by_a_view_too(self, x):
    x = self.conv(x)
    return self.bn(x) + x.flatten(2).mean(2)[..., None, None]


def used_in_a_list_too(self, x):
    x = self.conv(x)
    return self.bn(x) + torch.stack([x, x]).sum(0)


def used_by_a_method_too(self, x):
    x = self.conv(x)
    return self.bn(x).add_(x)


def given_out_too(self, x):
    x = self.conv(x)
    return self.bn(x), x


def two_norms(self, x):
    x = self.conv(x)
    return self.bn(x) + self.bn2(x)


def two_norms_on_two_levels(self, x):
    return self.bn(self.conv(x)) + self.bn2(self.conv(-x))


def two_layers_one_norm(self, x):
    y = self.conv(x)
    return self.bn(y) + self.bn(self.other(y))


def once_with_and_once_without(self, x):
    return self.bn(self.conv(x)) + self.conv(-x)


STAYS = [
    relu_between,
    module_between,
    arithmetic_between,
    used_by_a_layer_too,
    used_by_a_function_too,
    used_by_a_view_too,
    used_in_a_list_too,
    used_by_a_method_too,
    given_out_too,
    two_norms,
    two_norms_on_two_levels,
    two_layers_one_norm,
    once_with_and_once_without,
]


@pytest.mark.parametrize('run', STAYS, ids=lambda run: run.__name__)
@pytest.mark.parametrize('inplace', [False, True])
def test_a_norm_stays_where_folding_would_change_the_network(
    run, inplace, batches
):
    parts = dict(
        conv=conv(),
        other=conv(4, 4),
        act=nn.ReLU(inplace),
        bn=nn.BatchNorm2d(4),
        bn2=nn.BatchNorm2d(4),
    )
    network = Net(run, **parts)
    weight = network.conv.weight.clone()
    names, difference = folded(network, batches[0])

    assert names == [] and difference == 0
    assert torch.equal(network.conv.weight, weight)


def test_a_norm_before_a_convolution_stays(batches):
    network = Net(norm_first, conv=conv(), bn=nn.BatchNorm2d(3))

    assert folded(network, batches[0]) == ([], 0)


@pytest.mark.parametrize(
    'norm',
    [
        nn.GroupNorm(2, 4),
        nn.InstanceNorm2d(4),
        nn.BatchNorm2d(4, track_running_stats=False),
    ],
)
def test_a_norm_with_the_statistics_of_each_batch_stays(norm, batches):
    network = Net(lambda self, x: self.bn(self.conv(x)), conv=conv(), bn=norm)

    assert folded(network, batches[0]) == ([], 0)


class WithChild(nn.BatchNorm2d):
    """Norm with an activation inside, as in some libraries."""

    def __init__(self, channels):
        super().__init__(channels)
        self.act = nn.ReLU()

    def forward(self, x):
        return self.act(super().forward(x))


class WithFunction(nn.BatchNorm2d):
    def forward(self, x):
        return F.leaky_relu(super().forward(x), 0.1)


class OfAnotherKind(nn.Module):
    """Module with the tensors of a norm that computes something else."""

    def __init__(self, channels):
        super().__init__()
        self.eps = 1e-5
        for name in 'weight', 'bias', 'running_mean', 'running_var':
            self.register_buffer(name, torch.ones(channels))

    def forward(self, x):
        return x / (1 + self.running_var[:, None, None] * x.abs())


@pytest.mark.parametrize('kind', [WithChild, WithFunction, OfAnotherKind])
def test_a_norm_that_does_more_than_normalize_stays(kind, batches):
    network = Net(
        lambda self, x: self.bn(self.conv(x)), conv=conv(), bn=kind(4)
    )

    assert folded(network, batches[0]) == ([], 0)


def test_folding_draws_no_random_numbers(toy, batches):
    network = toy('residual')
    state = torch.get_rng_state()
    fold_batch_norm(network, record(network, batches[0]))

    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize('tokens', [4, 5])
def test_a_norm_over_tokens_stays(tokens):
    """Its channels are not those of the layer before it."""
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(tokens))

    assert folded(network, torch.randn(2, tokens, 3)) == ([], 0)


def test_a_norm_after_a_transposed_convolution_stays(batches):
    network = nn.Sequential(nn.ConvTranspose2d(3, 4, 2, 2), nn.BatchNorm2d(4))

    assert folded(network, batches[0]) == ([], 0)


def test_the_names_of_all_modules_stay(toy, batches):
    network = toy('residual')
    before = [name for name, _ in network.named_modules()]
    fold_batch_norm(network, record(network, batches[0]))

    assert [name for name, _ in network.named_modules()] == before


def test_a_double_network_folds_in_double(toy, batches):
    network = toy('residual').double()
    x = batches[0].double()
    expected = network(x)
    fold_batch_norm(network, record(network, x))

    assert (network(x) - expected).abs().max() < 1e-12
