from __future__ import annotations

import collections
import contextlib
import weakref

import pytest
import torch
from torch import nn

from mmrazor_brecq.activations import CachedBatches, Store, Stream
from mmrazor_brecq.activations import stream as stream_module
from mmrazor_brecq.graph import (
    BlockPartition,
    LayerPartition,
    NetworkPartition,
    PatternPartition,
    record,
    run_float,
)

PARTITIONS = [
    LayerPartition(),
    BlockPartition(),
    NetworkPartition(),
]


class Driven:
    """A network that a stream runs unit by unit."""

    def __init__(self, network, batches, partition=None, store=None):
        self.network = network
        self.store = store or Store(0)  # all tensors are in files
        self.batches = batches
        self.units = (partition or BlockPartition())(
            network, record(network, batches[0])
        )
        self.holder = nn.ModuleDict(dict(network=network))
        self.visits = []
        self.outputs = []

    def stream(self):
        sizes = [len(x) for x in self.batches]
        images = CachedBatches(self.batches, sizes, self.store)
        return Stream(self.holder, 'network', self.units, images)

    def run(self):
        modules = {unit.name: unit.module for unit in self.units}
        hook = self.network.register_forward_hook(
            lambda module, args, out: self.outputs.append(out)
        )
        with self.stream() as stream, torch.no_grad():
            arrived = stream.advance()
            while arrived is not None:
                name, calls = arrived
                assert len(calls) == sum(map(len, self.batches))
                self.visits.append(name)
                arrived = stream.advance(stream.run(modules[name]))
        hook.remove()
        return self


@pytest.mark.parametrize(
    'partition', PARTITIONS, ids=lambda p: type(p).__name__
)
@pytest.mark.parametrize('budget', [None, 0])
def test_suspended_passes_have_the_outputs_of_plain_ones(
    budget, partition, each_toy, batches, tmp_path
):
    store = Store(budget, str(tmp_path))
    driven = Driven(each_toy, batches, partition, store).run()

    with torch.no_grad():
        expected = [run_float(each_toy, x) for x in batches]
    assert len(driven.outputs) == len(batches)
    for out, plain in zip(driven.outputs, expected):
        assert torch.equal(out, plain)


@pytest.mark.parametrize(
    'partition', PARTITIONS, ids=lambda p: type(p).__name__
)
def test_every_module_runs_once_a_batch(partition, each_toy, batches):
    driven = Driven(each_toy, batches, partition)
    calls = record(each_toy, batches[0]).by_module()
    count = collections.Counter()
    for module in each_toy.modules():
        module.register_forward_hook(lambda module, *_: count.update([module]))
    driven.run()

    assert count == {
        module: len(uses) * len(batches) for module, uses in calls.items()
    }


def test_units_arrive_in_the_order_of_execution(toy, batches):
    assert Driven(toy('residual'), batches).run().visits == [
        'stem.0',
        'blocks.0',
        'blocks.1',
        'head',
    ]
    # A unit that is called twice arrives twice.
    assert Driven(toy('shared'), batches).run().visits == [
        'stem.0',
        'blocks.0',
        'head.0',
        'head.0',
    ]


def test_a_batch_waits_with_the_arguments_of_its_unit(toy, batches):
    """They may be nested, and keywords, and no tensors."""
    driven = Driven(toy('nested'), batches)
    modules = {unit.name: unit.module for unit in driven.units}
    with driven.stream() as stream, torch.no_grad():
        name, calls = stream.advance()
        for expected in 'fuse.0', 'fuse.1':
            name, calls = stream.advance(stream.run(modules[name]))
            assert name == expected
        (both,), kwargs = calls.batch(1)

    assert set(both) == {'left', 'right'} and kwargs == dict(gain=0.5)
    assert both['left'].shape == (4, 8, 8, 8)


def children(network):
    return [
        (id(parent), name, id(child))
        for parent in network.modules()
        for name, child in parent._modules.items()
    ]


@pytest.mark.parametrize('advances', [0, 1, 2])
def test_all_modules_are_restored_after_the_stream(
    advances, each_toy, batches
):
    """Whether the stream ran to its end or not."""
    before = children(each_toy)
    expected = run_float(each_toy, batches[0])
    driven = Driven(each_toy, batches)
    modules = {unit.name: unit.module for unit in driven.units}
    with driven.stream() as stream:
        assert children(each_toy) != before
        arrived = stream.advance() if advances else None
        for _ in range(advances - 1):
            name, calls = arrived
            arrived = stream.advance(stream.run(modules[name]))

    assert children(each_toy) == before
    assert driven.holder.network is each_toy
    assert torch.equal(run_float(each_toy, batches[0]), expected)


@pytest.mark.parametrize('where', ['unit', 'glue'])
def test_all_modules_are_restored_after_an_exception(where, toy, batches):
    network = toy('residual')
    driven = Driven(network, batches)
    before = children(network)

    def fail(module, args):
        raise FloatingPointError(where)

    target = network.blocks[1] if where == 'unit' else network.blocks
    handle = target.register_forward_pre_hook(fail)
    with pytest.raises(FloatingPointError, match=where):
        driven.run()
    handle.remove()

    assert children(network) == before
    driven.visits.clear(), driven.outputs.clear()
    assert len(driven.run().visits) == 4


class Unusual(nn.Module):
    """A network with Python code of many kinds between its units."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Conv2d(3, 3, 1) for _ in range(5)])
        self.table = dict(last=lambda x: self.blocks[4](x))

    def steps(self, x):
        for block in self.blocks[:2]:
            x = block(x)
            yield x

    @contextlib.contextmanager
    def quietly(self):
        try:
            yield
        finally:
            self.quiet = True

    def forward(self, x):
        *_, x = self.steps(x)
        with self.quietly(), torch.enable_grad():
            x = self.blocks[2](x)
        try:
            x = self.blocks[3](x.sigmoid())
            raise KeyError('caught')
        except KeyError:
            x = x[:, torch.randperm(3)]
        x = self.table['last'](x.relu_()) if x.shape[1] == 3 else x
        return dict(out=[x, x.flatten(1)], count=len(x))


def test_any_python_may_stand_between_the_units(batches):
    network = Unusual().eval()
    driven = Driven(network, batches)
    torch.manual_seed(0)
    driven.run()

    torch.manual_seed(0)
    assert driven.visits == [f'blocks.{i}' for i in range(5)]
    for out, x in zip(driven.outputs, batches):
        plain = network(x)
        assert torch.equal(out['out'][0], plain['out'][0])
        assert out['count'] == len(x)


def test_the_callers_grad_mode_is_its_own(batches):
    """A unit inside ``no_grad`` or ``enable_grad`` of the network."""
    network = Unusual().eval()
    driven = Driven(network, batches)
    modules = {unit.name: unit.module for unit in driven.units}
    for mode in True, False:
        with driven.stream() as stream, torch.set_grad_enabled(mode):
            arrived = stream.advance()
            while arrived is not None:
                assert torch.is_grad_enabled() is mode
                name, calls = arrived
                for args, _ in calls.split():
                    assert not args[0].requires_grad
                arrived = stream.advance(stream.run(modules[name]))
            assert torch.is_grad_enabled() is mode


class Branching(nn.Module):
    """A network whose path depends on its data."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 3, 1)
        self.left = nn.Conv2d(3, 3, 1)
        self.right = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        branch = self.left if x.mean() > 0 else self.right
        return branch(self.stem(x))


class Skipping(Branching):
    def forward(self, x):
        x = self.stem(x)
        return self.left(x) if len(x) > 4 else x


@pytest.mark.parametrize(
    ('kind', 'message'),
    [(Branching, 'left.*right'), (Skipping, 'several batches')],
)
def test_a_path_that_depends_on_the_data_is_refused(kind, message, batches):
    network = kind().eval()
    batches = [x.abs() if len(x) == 5 else -x.abs() for x in batches]
    units = LayerPartition()(network, record(network, batches[0]))
    driven = Driven(network, batches, LayerPartition())
    assert units == driven.units
    # All layers have to be known, also those that the first batch misses.
    driven.units += LayerPartition()(network, record(network, batches[1]))
    with pytest.raises(RuntimeError, match=message):
        driven.run()
    assert isinstance(network.stem, nn.Conv2d)


def test_a_suspending_module_has_the_attributes_of_its_unit(batches):
    class Asks(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x):
            return self.conv(x) * self.conv.out_channels

    driven = Driven(Asks().eval(), batches).run()
    with torch.no_grad():
        assert torch.equal(driven.outputs[0], driven.network(batches[0]))


def test_a_unit_in_several_places_suspends_in_all_of_them(batches):
    shared = nn.Conv2d(3, 3, 1)
    network = nn.Sequential(shared, nn.ReLU(), nn.Sequential(shared))
    partition = PatternPartition(['0'])
    driven = Driven(network.eval(), batches, partition).run()

    assert driven.visits == ['0', '0']
    assert network[2][0] is shared and network[0] is shared


@pytest.mark.parametrize('budget', [0, 5_000, 20_000, 40_000, 80_000, None])
def test_duplicates_in_memory_are_within_the_budget(
    budget, toy, batches, tmp_path
):
    """Also if the store fills up while the passes wait."""
    store = Store(budget, str(tmp_path))
    driven = Driven(toy('residual'), batches, store=store)
    modules = {unit.name: unit.module for unit in driven.units}
    most = 0

    def duplicate_bytes(stream):
        """Return the bytes of the tensors that passes keep in memory."""
        freeable = [x for tensors in stream._freeable for x in tensors]
        found = sum(
            x.numel() * x.element_size()
            for x in {x.tensor() for x in freeable} - {None}
            if x.untyped_storage().nbytes()
        )
        assert found == store.duplicate_bytes
        assert store.cached_bytes + found <= store.max_bytes
        return found

    with driven.stream() as stream, torch.no_grad():
        arrived = stream.advance()
        while arrived is not None:
            most = max(most, duplicate_bytes(stream))
            module = modules[arrived[0]]
            targets = CachedBatches(
                stream.run(module), stream.images.sizes, store
            )  # More is cached now.
            duplicate_bytes(stream)
            arrived = stream.advance(targets.split())
    assert store.duplicate_bytes == 0
    assert (most > 0) == (budget in (80_000, None))


@pytest.mark.parametrize(
    ('name', 'resume'),
    [
        *(('residual', True), ('inverted', True)),  # No views of outputs.
        *(('residual', False), ('inverted', False), ('transformer', False)),
    ],
)
@pytest.mark.parametrize('partition', PARTITIONS[:2], ids=['layers', 'blocks'])
def test_one_batch_is_in_memory_at_a_time(
    name, resume, partition, toy, generator
):
    """But for the first two, until both are cached."""
    batches = torch.randn(12, 3, 8, 8, generator=generator).split(2)
    driven = Driven(toy(name), batches, partition)
    modules = {unit.name: unit.module for unit in driven.units}
    seen, calls = [], []

    def before(module, args):
        for x in [] if len(calls) < 3 else seen:
            assert x() is None or not x().untyped_storage().nbytes()
        calls.append(module)

    def after(module, args, output):
        seen.extend(
            weakref.ref(x)
            for x in [*args, output]
            if isinstance(x, torch.Tensor) and x.dim()
        )

    with driven.stream() as stream, torch.no_grad():
        arrived = stream.advance()
        while arrived is not None:
            module = modules[arrived[0]]
            del arrived
            seen.clear(), calls.clear()
            hooks = [
                module.register_forward_pre_hook(before),
                module.register_forward_hook(after),
            ]
            outputs = stream.run(module)
            if not resume:
                targets = CachedBatches(
                    outputs, stream.images.sizes, driven.store
                )
                for hook in hooks:
                    hook.remove()
                outputs = targets.split()
            arrived = stream.advance(outputs)
            for hook in hooks:
                hook.remove()
            assert len(calls) >= len(batches)


@pytest.mark.parametrize(
    ('budget', 'max_freed', 'calls'),
    [(0, 0, True), (0, 2**40, False), (None, 0, False)],
)
def test_the_system_gets_freed_memory_back(
    budget, max_freed, calls, toy, batches, monkeypatch, tmp_path
):
    """At least once a unit, if enough was freed."""
    returned = []
    monkeypatch.setattr(stream_module, 'MAX_FREED_BYTES', max_freed)
    monkeypatch.setattr(
        stream_module, 'give_back_freed_memory', lambda: returned.append(1)
    )
    store = Store(budget, str(tmp_path))
    driven = Driven(toy('residual'), batches, store=store).run()

    assert (len(returned) >= len(driven.units)) == calls
    assert bool(returned) == calls
