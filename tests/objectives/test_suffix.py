"""The loss behind a unit, beside suffixes that are written by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map

from mmrazor_brecq.activations import CachedBatches
from mmrazor_brecq.graph import (
    BlockPartition,
    LayerPartition,
    NetworkPartition,
    record,
    run_float,
)
from mmrazor_brecq.objectives import FisherDiag, SuffixLoss
from mmrazor_brecq.registry import TASK_UTILS


def begun(network, name, batches, partition=None, **kwargs):
    """Begin a unit; return objective, unit, rounded outputs and targets."""
    network.requires_grad_(False)
    recording = record(network, batches[0])
    units = (partition or BlockPartition())(network, recording)
    (unit,) = [unit for unit in units if unit.name == name]
    objective = SuffixLoss(**kwargs)
    objective.watch(
        network,
        units,
        CachedBatches(batches, [len(batch) for batch in batches]),
        torch.Generator().manual_seed(0),
    )
    targets = [first_output(network, unit, batch) for batch in batches]
    noise = torch.Generator().manual_seed(1)
    rounded = [
        tree_map(
            lambda x: x + 0.1 * torch.randn(x.shape, generator=noise), target
        )
        for target in targets
    ]
    objective.begin(unit, rounded, targets)
    return objective, unit, rounded, targets


@torch.no_grad()
def first_output(network, unit, batch):
    found = []
    hook = unit.module.register_forward_hook(
        lambda module, args, out: found.append(tree_map(torch.clone, out))
    )
    run_float(network, batch)
    hook.remove()
    return found[0]


def expected(suffix, batches, rounded, targets, output, local_weight=2.0):
    """The loss of a suffix written by hand, for the first batch.

    The suffix returns a list of features.
    """

    def errors(out, target, batch):
        pairs = zip(suffix(out, batch), suffix(target, batch))
        behind = sum(F.mse_loss(*pair) for pair in pairs)
        return torch.stack([behind, F.mse_loss(out, target)])

    images = sum(map(len, batches))
    nearest = sum(
        len(batch) * errors(out, target, batch)
        for out, target, batch in zip(rounded, targets, batches)
    )
    found = errors(output, targets[0], batches[0]) * images / nearest
    return found[0] + local_weight * found[1]


def check_gradient(network, name, suffix, batches, **kwargs):
    """Compare loss and gradient with those of a suffix; return objective."""
    objective, unit, rounded, targets = begun(
        network, name, batches, temper=0, **kwargs
    )
    index = torch.arange(len(batches[0]))
    leaves = [rounded[0].clone().requires_grad_() for _ in range(2)]
    losses = [
        objective(unit, leaves[0] * 1, targets[0], index),
        expected(suffix, batches, rounded, targets, leaves[1]),
    ]
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(leaves[0].grad, leaves[1].grad)
    assert leaves[0].grad.any()
    assert objective(unit, targets[0], targets[0], index) < 1e-10
    return objective, unit


def test_the_gradient_is_that_of_the_suffix(toy, batches):
    network = toy('residual')

    def suffix(out, batch):
        return [network.blocks[1](out).mean((2, 3))]

    objective, unit = check_gradient(network, 'blocks.0', suffix, batches)
    assert objective.describe(unit) == 'SuffixLoss before the last layer'
    assert all(p.grad is None for p in network.parameters())
    assert 'forward' not in vars(unit.module)


class Skips(nn.Module):
    """A tensor goes past two units, and one is written to on the way."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 8, 1)
        self.b = nn.Conv2d(8, 8, 3, padding=1)
        self.c = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        a = self.a(x)
        return self.head(self.end(a, self.c(self.b(a).relu_())))

    @staticmethod
    def end(a, c):
        return (a + c).relu().mean((2, 3))


@pytest.mark.parametrize('name', ['a', 'b', 'c'])
def test_what_goes_past_the_unit_is_there(name, batches):
    torch.manual_seed(0)
    network = Skips().eval()
    suffixes = dict(
        a=lambda a, x: [network.end(a, network.c(network.b(a).relu()))],
        b=lambda b, x: [network.end(network.a(x), network.c(b.relu()))],
        c=lambda c, x: [network.end(network.a(x), c)],
    )
    check_gradient(network, name, suffixes[name], batches)


@pytest.mark.parametrize(
    ('name', 'network', 'runs'),
    [('blocks.1', 'residual', 0), ('c', Skips, 1), ('b', Skips, 1)],
)
def test_units_before_run_only_if_they_are_read(
    name, network, runs, toy, batches
):
    network = toy(network) if isinstance(network, str) else network().eval()
    objective, unit, rounded, targets = begun(network, name, batches)
    first = next(m for m in network.modules() if isinstance(m, nn.Conv2d))
    calls = []
    forward = first.forward
    first.forward = lambda x: calls.append(len(x)) or forward(x)

    objective(unit, rounded[1], targets[1], torch.arange(5, 9))
    assert calls == [4] * runs
    assert first.forward is not forward  # What somebody set is still there.


def test_the_heads_unit_has_the_divergence_of_its_output(toy, batches):
    objective, unit, rounded, targets = begun(
        toy('residual'), 'head', batches, local_weight=0
    )
    goals, found = torch.cat(targets), torch.cat(rounded)

    def divergence(output, goal):
        return F.kl_div(
            output.log_softmax(1),
            goal.softmax(1),
            reduction='batchmean',
        )

    loss = objective(unit, rounded[0], targets[0], torch.arange(5))
    ratio = divergence(rounded[0], targets[0]) / divergence(found, goals)
    torch.testing.assert_close(loss, ratio)
    assert objective.describe(unit) == 'SuffixLoss at the outputs, Categorical'


def test_the_whole_network_may_be_one_unit(toy, batches):
    objective, unit, rounded, targets = begun(
        toy('residual'), '', batches, NetworkPartition()
    )
    assert objective(unit, rounded[0], targets[0], torch.arange(5)) > 0
    assert 'at the outputs' in objective.describe(unit)


class TwoHeads(nn.Module):
    """One output depends on the unit through a layer, and one does not."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.maps = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        maps = self.maps(self.stem(x).relu())
        return self.head(maps.mean((2, 3))), maps


def test_an_output_that_no_layer_follows_counts_itself(batches):
    network = TwoHeads().eval()
    objective, unit, *_ = begun(network, 'maps', batches, LayerPartition())
    assert 'at the outputs' in objective.describe(unit)
    objective, unit, *_ = begun(network, 'stem', batches, LayerPartition())
    assert 'before the last layer' in objective.describe(unit)


class NoGradient(nn.Module):
    """A part of it runs without gradients."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.body = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        with torch.no_grad():
            x = self.body(self.stem(x))
        return self.head(x.mean((2, 3)))


def test_where_no_gradient_comes_back_the_local_error_counts(
    batches, warnings_log
):
    torch.manual_seed(0)
    objective, unit, rounded, targets = begun(
        NoGradient().eval(), 'stem', batches
    )
    loss = objective(unit, rounded[0], targets[0], torch.arange(5))
    torch.testing.assert_close(loss, F.mse_loss(rounded[0], targets[0]))
    assert objective.describe(unit) == 'MSE, the loss has no gradient here'
    (said,) = warnings_log
    assert 'stem' in said and 'not SuffixLoss' in said


def test_a_last_layer_that_is_called_twice_has_two_features(toy, batches):
    network = toy('shared')
    tower = network.head[0]

    def suffix(out, batch):
        levels = out, F.avg_pool2d(out, 2)
        return [tower.conv(x).relu() for x in levels]

    check_gradient(network, 'blocks.0', suffix, batches)


def test_only_the_first_call_of_a_unit_is_given(toy, batches):
    network = toy('shared')
    objective, unit, rounded, targets = begun(network, 'head.0', batches)
    calls = []
    unit.module.conv.register_forward_hook(
        lambda module, args, out: calls.append(out.shape[-1])
    )
    objective(unit, rounded[0], targets[0], torch.arange(5))

    assert calls == [4]  # The coarse level.
    assert 'at the outputs' in objective.describe(unit)


def learned(model, teacher, batches):
    config = dict(
        type='BlockReconstructor',
        iterations=3,
        batch_size=8,
        objective=dict(type='SuffixLoss', images=8),
    )
    reconstructor = TASK_UTILS.build(config)
    return [*model.reconstruct(teacher, batches, reconstructor=reconstructor)]


@pytest.mark.parametrize('name', ['transformer', 'transposed'])
def test_a_run_leaves_the_teacher_as_it_was(name, batches, quantize):
    model, teacher = quantize(name, (3, 4))
    for report in learned(model, teacher, batches):
        assert report.iterations or 'negligible' in report.note
        assert report.objective.startswith('SuffixLoss')
    assert not any('forward' in vars(m) for m in teacher.modules())
    assert not any(m._forward_pre_hooks for m in teacher.modules())


def test_weights_that_move_straight_through_learn(batches, quantize):
    weight = dict(bits=3, rounding=dict(type='StraightThrough'))
    model, teacher = quantize('residual', quantization=dict(weight=weight))
    reports = learned(model, teacher, batches)
    assert any(report.accepted for report in reports)


def test_a_batch_in_low_precision_stays_so(toy, batches):
    network = toy('residual')
    objective, unit, rounded, targets = begun(network, 'blocks.0', batches)
    seen = []
    network.blocks[1].conv1.register_forward_hook(
        lambda module, args, out: seen.append(out.dtype)
    )
    index = torch.arange(5)
    exact = objective(unit, rounded[0], targets[0], index)
    low = rounded[0].bfloat16().requires_grad_()
    loss = objective(unit, low, targets[0], index)
    loss.backward()

    assert seen == [torch.float32, torch.bfloat16]
    torch.testing.assert_close(loss, exact, rtol=0.05, atol=0)
    assert low.grad.isfinite().all()


def test_scales_are_chosen_by_the_local_error(toy, batches):
    objective, unit, rounded, targets = begun(
        toy('residual'), 'blocks.0', batches
    )
    objective.end(unit)
    index = torch.arange(5)
    local = FisherDiag()
    local.weights = objective.weights
    args = unit, rounded[0], targets[0], index
    assert objective.rough_error(*args) == local(*args)
