from __future__ import annotations

import pytest
import torch
from torch import nn

from mmrazor_brecq.graph import Reference, Rewrite, apply_checked
from mmrazor_brecq.graph.compare import differences


class Scale(Rewrite):
    """Multiplies a layer by a factor: wrong, unless that is 1."""

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
        Scale(str(i), layer, 1.5 if i in wrong else 1)
        for i, layer in enumerate(network)
    ]


@pytest.mark.parametrize('wrong', [(), (0,), (7,), (2, 3, 6), range(8)])
def test_only_what_is_wrong_is_undone(wrong, network, x):
    expected = network(x)
    before = [layer.weight.data for layer in network]
    steps = rewrites(network, wrong)
    undone = apply_checked(network, steps, x)

    assert undone == [steps[i] for i in wrong]
    assert torch.equal(network(x), expected)
    for i, weight in enumerate(before):
        assert torch.equal(network[i].weight.data, weight)
        assert steps[i].log[-1] == ('undo' if i in wrong else 'apply')


def test_halves_are_tried_where_places_show_nothing(network, x):
    """What each gives is right, and the network's output is not."""

    class Reads(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return self.inner(x) + sum(m.bias.sum() for m in self.inner)

    class Shift(Rewrite):
        """Moves the bias into the other half, and the module makes up."""

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
    steps = [
        Shift(f'inner.{i}', layer, 1.0 if i in (1, 4, 5) else 0.0)
        for i, layer in enumerate(network)
    ]
    expected = whole(x)

    assert apply_checked(whole, steps, x) == [steps[i] for i in (1, 4, 5)]
    torch.testing.assert_close(whole(x), expected)


def test_nothing_runs_where_nothing_is_rewritten(network, x):
    calls = []
    network.register_forward_hook(lambda *_: calls.append(1))

    assert apply_checked(network, [], x) == [] and not calls


def test_a_right_rewrite_costs_four_passes(network, x):
    """Two before, of which one tells what noise does, and two after."""
    calls = []
    network.register_forward_hook(lambda *_: calls.append(1))
    apply_checked(network, rewrites(network, ()), x)

    assert len(calls) == 4


def test_code_that_a_rewrite_breaks_is_a_difference(network, x):
    class Remove(Scale):
        def apply(self):
            self.before, self.layer.weight = self.layer.weight, None

        def undo(self):
            self.layer.weight = self.before

    steps = rewrites(network, ())
    steps[5] = Remove('5', network[5], 1)
    expected = network(x)

    assert apply_checked(network, steps, x) == [steps[5]]
    assert torch.equal(network(x), expected)


def test_rounding_errors_are_no_difference(network, x):
    steps = rewrites(network, ())
    for step in steps:
        step.factor = 1 + 1e-6

    assert apply_checked(network, steps, x) == []


class Sorts(nn.Module):
    """As a detector: what is near the edge comes first, or not at all."""

    def __init__(self, first):
        super().__init__()
        self.first = first

    def forward(self, x):
        scores = self.first(x)
        kept = scores[(scores - scores.median()).abs() > 1e-5 * scores.max()]
        return [dict(boxes=kept, labels=kept.argsort())]


def test_outputs_that_noise_upsets_are_not_judged_by(x):
    """But the places before them are."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Sorts(nn.Linear(6, 300)).eval()
    model.first.weight.data[:150] = model.first.weight.data[150:]
    model.first.bias.data[:150] = model.first.bias.data[150:] * (1 + 1e-6)
    near = Scale('first', model.first, 1 + 1e-6)
    far = Scale('first', model.first, 1.1)

    assert apply_checked(model, [near], x) == []
    assert apply_checked(model, [far], x) == [far]


def test_a_network_that_draws_numbers_draws_the_same(network, x):
    class Drops(nn.Module):
        def forward(self, x):
            return nn.functional.dropout(x, 0.5, True)

    model = nn.Sequential(*network, Drops())
    state = torch.get_rng_state()
    steps = rewrites(network, (3,))

    assert apply_checked(model, steps, x) == [steps[3]]
    assert torch.equal(torch.get_rng_state(), state)


def test_a_module_that_is_called_otherwise_is_a_difference(network, x):
    """More often than before, or less."""

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
    step = More('inner')

    assert apply_checked(model, [step], x) == [step]


def test_a_network_written_to_by_hand(network, x):
    """A rewrite that is no list of steps asks the reference itself."""
    reference = Reference(network, x)
    assert reference.matches()
    network[3].bias.data += 0.1
    assert not reference.matches()


@pytest.mark.parametrize(
    ('expected', 'found', 'far'),
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
def test_differences_are_those_of_each_tensor(expected, found, far):
    assert differences(expected, found) == far
