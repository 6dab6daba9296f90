from __future__ import annotations

import pytest
import torch
from torch import nn

from mmrazor_brecq.graph import Reference, Rewrite, apply_checked
from mmrazor_brecq.graph.compare import differences


class Multiply(Rewrite):
    """Rewrite that multiplies a weight: wrong, unless the factor is 1."""

    def __init__(self, name, layer, factor):
        super().__init__(name)
        self.layer = layer
        self.factor = factor
        self.log = []

    def apply(self):
        self.log.append('apply')
        self.before = self.layer.weight.data
        self.layer.weight.data = self.before * self.factor

    def undo(self):
        self.log.append('undo')
        self.layer.weight.data = self.before


@pytest.fixture
def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [nn.Linear(6, 6) for _ in range(8)]
        return nn.Sequential(*layers).eval()


@pytest.fixture
def x(generator):
    return torch.randn(2, 6, generator=generator)


def rewrites(network, wrong):
    return [
        Multiply(str(i), layer, 1.5 if i in wrong else 1)
        for i, layer in enumerate(network)
    ]


@pytest.mark.parametrize('wrong', [(), (0,), (7,), (2, 3, 6), range(8)])
def test_only_wrong_rewrites_are_undone(wrong, network, x):
    expected = network(x)
    before = [layer.weight.data for layer in network]
    found = rewrites(network, wrong)
    undone = apply_checked(network, found, x)

    assert undone == [found[i] for i in wrong]
    assert torch.equal(network(x), expected)
    for i, weight in enumerate(before):
        assert torch.equal(network[i].weight.data, weight)
        assert found[i].log[-1] == ('undo' if i in wrong else 'apply')


def test_halves_are_tried_if_only_the_network_output_is_wrong(network, x):
    """The output of each module is right, that of the network is not."""

    class Reads(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return self.inner(x) + sum(m.bias.sum() for m in self.inner)

    class Shift(Rewrite):
        """Rewrite that shifts the bias, which a hook subtracts again."""

        def __init__(self, name, layer, amount):
            super().__init__(name)
            self.layer, self.amount = layer, amount

        def _move(self, amount):
            self.layer.bias.data += amount
            self.layer.shift = getattr(self.layer, 'shift', 0) + amount

        def apply(self):
            self._move(self.amount)

        def undo(self):
            self._move(-self.amount)

    for layer in network:
        layer.register_forward_hook(
            lambda module, args, out: out - getattr(module, 'shift', 0)
        )
    whole = Reads(network).eval()
    shifts = [
        Shift(f'inner.{i}', layer, 1.0 if i in (1, 4, 5) else 0.0)
        for i, layer in enumerate(network)
    ]
    expected = whole(x)

    assert apply_checked(whole, shifts, x) == [shifts[i] for i in (1, 4, 5)]
    torch.testing.assert_close(whole(x), expected)


def test_without_rewrites_nothing_runs(network, x):
    calls = []
    network.register_forward_hook(lambda *_: calls.append(1))

    assert apply_checked(network, [], x) == [] and not calls


def test_a_right_rewrite_costs_four_passes(network, x):
    """Two before, one of them with noise, and two after."""
    calls = []
    network.register_forward_hook(lambda *_: calls.append(1))
    apply_checked(network, rewrites(network, ()), x)

    assert len(calls) == 4


def test_a_rewrite_that_makes_the_network_fail_is_undone(network, x):
    class Remove(Multiply):
        def apply(self):
            self.before, self.layer.weight = self.layer.weight, None

        def undo(self):
            self.layer.weight = self.before

    found = rewrites(network, ())
    found[5] = Remove('5', network[5], 1)
    expected = network(x)

    assert apply_checked(network, found, x) == [found[5]]
    assert torch.equal(network(x), expected)


def test_rounding_errors_count_as_no_difference(network, x):
    found = rewrites(network, ())
    for rewrite in found:
        rewrite.factor = 1 + 1e-6

    assert apply_checked(network, found, x) == []


class Sorts(nn.Module):
    """Network that sorts and drops values by score, as a detector does."""

    def __init__(self, first):
        super().__init__()
        self.first = first

    def forward(self, x):
        scores = self.first(x)
        kept = scores[(scores - scores.median()).abs() > 1e-5 * scores.max()]
        return [dict(boxes=kept, labels=kept.argsort())]


def test_outputs_that_noise_changes_have_a_larger_tolerance(x):
    """Outputs of modules before them are still compared."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Sorts(nn.Linear(6, 300)).eval()
    model.first.weight.data[:150] = model.first.weight.data[150:]
    model.first.bias.data[:150] = model.first.bias.data[150:] * (1 + 1e-6)
    near = Multiply('first', model.first, 1 + 1e-6)
    far = Multiply('first', model.first, 1.1)

    assert apply_checked(model, [near], x) == []
    assert apply_checked(model, [far], x) == [far]


def test_a_random_network_draws_the_same_numbers_in_each_pass(network, x):
    class Drops(nn.Module):
        def forward(self, x):
            return nn.functional.dropout(x, 0.5, True)

    model = nn.Sequential(*network, Drops())
    state = torch.get_rng_state()
    found = rewrites(network, (3,))

    assert apply_checked(model, found, x) == [found[3]]
    assert torch.equal(torch.get_rng_state(), state)


def test_another_number_of_calls_counts_as_a_difference(network, x):
    """A module is called once more after the rewrite."""

    class Skips(nn.Module):
        times = 1

        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            for _ in range(self.times):
                self.inner(x)
            return x

    class More(Rewrite):
        def apply(self):
            Skips.times = 2

        def undo(self):
            Skips.times = 1

    model = Skips(network[0])
    rewrite = More('inner')

    assert apply_checked(model, [rewrite], x) == [rewrite]


def test_a_reference_notices_a_change_made_by_hand(network, x):
    """A change that is no list of rewrites uses the reference directly."""
    reference = Reference(network, x)
    assert reference.matches()
    network[3].bias.data += 0.1
    assert not reference.matches()


@pytest.mark.parametrize(
    ('expected', 'found', 'result'),
    [
        (torch.tensor([4.0, 1.0]), torch.tensor([4.0, 2.0]), [0.25]),
        ([torch.ones(2)], [torch.ones(2), torch.ones(1)], [float('inf')]),
        (torch.ones(2), torch.ones(3), [float('inf')]),
        (torch.tensor([1, 2]), torch.tensor([5, 2]), [0.0]),
        (torch.ones(0), torch.ones(0), [0.0]),
        (
            dict(a=torch.zeros(2), b=[torch.ones(1), 'c']),
            dict(a=torch.zeros(2), b=[torch.zeros(1), 'd']),
            [0.0, 1.0],
        ),
        (torch.tensor([torch.nan, 1.0]), torch.tensor([torch.nan, 1.0]), [0]),
    ],
)
def test_there_is_one_difference_for_each_tensor(expected, found, result):
    assert differences(expected, found) == result
