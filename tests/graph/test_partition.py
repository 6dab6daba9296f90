from __future__ import annotations

import pytest
import torch
from torch import nn

from mmrazor_brecq.graph import (
    BlockPartition,
    LayerPartition,
    NetworkPartition,
    PatternPartition,
    QuantizationScheme,
    StagePartition,
    prepare,
    record,
)
from mmrazor_brecq.layers import is_quantizable

PARTITIONS = [
    LayerPartition(),
    BlockPartition(),
    StagePartition(),
    NetworkPartition(),
    PatternPartition(['[hos]*']),
]


def cut(network, batches, partition):
    return partition(network, record(network, batches[0]))


def names(units):
    return [unit.name for unit in units]


@pytest.mark.parametrize(
    'partition', PARTITIONS, ids=lambda p: type(p).__name__
)
def test_every_called_layer_is_in_exactly_one_unit(
    partition, each_toy, batches
):
    recording = record(each_toy, batches[0])
    units = partition(each_toy, recording)

    layers = [name for unit in units for name in unit.layers]
    called = {c.name for c in recording.calls if is_quantizable(c.module)}
    assert len(layers) == len(set(layers))
    assert set(layers) == called
    for unit in units:
        assert each_toy.get_submodule(unit.name) is unit.module
        prefix = unit.name + '.' if unit.name else ''
        for name in unit.layers:
            assert name == unit.name or name.startswith(prefix)


@pytest.mark.parametrize(
    'partition', PARTITIONS[:4], ids=lambda p: type(p).__name__
)
def test_units_are_in_the_order_of_their_calls(partition, toy, batches):
    """The order in which modules are constructed does not matter."""

    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.c = nn.Conv2d(3, 3, 1)
            self.blocks = nn.ModuleList([Two(), Two()])
            self.a = nn.Conv2d(3, 3, 1)

        def forward(self, x):
            x = self.blocks[1](self.a(x))
            return self.c(self.blocks[0](x))

    units = cut(Backwards(), batches, partition)

    assert [name for unit in units for name in unit.layers] == [
        'a',
        'blocks.1.second',
        'blocks.1.first',
        'blocks.0.second',
        'blocks.0.first',
        'c',
    ]


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 3, 1)
        self.second = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return self.first(self.second(x)) + x


@pytest.mark.parametrize(
    ('name', 'expected'),
    dict(
        residual=['stem.0', 'blocks.0', 'blocks.1', 'head'],
        inverted=['stem.0', 'blocks.0', 'blocks.1', 'head'],
        grouped=[
            'stem.0',
            'blocks.0.0.0',
            'blocks.0.1.0',
            'blocks.0.2.0',
            'head',
        ],
        shared=['stem.0', 'blocks.0', 'head.0'],
        nested=['stem.0', 'fuse.0', 'fuse.1', 'head'],
        transformer=['embed', 'blocks.0', 'blocks.1', 'head'],
        uncalled=['stem.0', 'head'],
        transposed=['stem.0', 'out'],
    ).items(),
)
def test_blocks_are_those_of_the_papers(name, expected, toy, batches):
    assert names(cut(toy(name), batches, BlockPartition())) == expected


@pytest.mark.parametrize(
    ('name', 'expected'),
    dict(
        residual=[1, 2, 2, 1],  # The second block has a shortcut's layer.
        inverted=[1, 3, 3, 1],
        shared=[1, 2, 2],
        nested=[1, 1, 1, 1],
        transformer=[1, 4, 4, 1],
    ).items(),
)
def test_parallel_layers_count_once(name, expected, toy, batches):
    units = cut(toy(name), batches, BlockPartition())

    assert [unit.depth for unit in units] == expected


class Chain(nn.Module):
    """Network of one layer after the other, with operations between."""

    def __init__(self, layer, times):
        super().__init__()
        self.layers = nn.ModuleList([layer] * times)

    def forward(self, x):
        for layer in self.layers:
            y = layer(x).relu_()
            y += 1
            y[:, 0] = y[:, 1] * 2
            x = torch.cat([y[:, :2].flatten(2), x[:, 2:].flatten(2)], 1)
            x = x.transpose(1, 2).contiguous().transpose(1, 2)
            x = x.unflatten(2, (8, 8))
        return x


@pytest.mark.parametrize('times', [1, 2, 5])
def test_the_longest_path_leads_through_all_other_operations(times, batches):
    network = Chain(None, 0)
    network.layers.extend(nn.Conv2d(3, 3, 1) for _ in range(times))

    (unit,) = cut(network, batches, NetworkPartition())
    assert unit.depth == times


def test_a_layer_that_is_called_again_counts_once(batches):
    network = Chain(nn.Conv2d(3, 3, 1), 3)

    (unit,) = cut(network, batches, NetworkPartition())
    assert unit.depth == 1


def test_blocks_are_in_the_backbone(batches):
    """A head of two layers is no block if there is a backbone."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = nn.Module()
            self.backbone.block = Two()
            self.head = Two()

        def forward(self, x):
            return self.head(self.backbone.block(x))

    units = cut(Model(), batches, BlockPartition())
    assert names(units) == ['backbone.block', 'head.second', 'head.first']
    units = cut(Model(), batches, BlockPartition(backbone='spine'))
    assert names(units) == [
        'backbone.block.second',
        'backbone.block.first',
        'head',
    ]


def test_a_block_has_no_other_block_in_it(batches):
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.before = nn.Conv2d(3, 3, 1)
            self.inner = nn.Sequential(Two(), Two())

        def forward(self, x):
            return self.inner(self.before(x))

    units = cut(nn.Sequential(Outer(), Two()), batches, BlockPartition())
    assert names(units) == ['0.before', '0.inner.0', '0.inner.1', '1']


def test_a_module_that_is_never_called_is_no_block(batches):
    """The module that calls its layers is the block."""

    class Borrows(nn.Module):
        def __init__(self):
            super().__init__()
            self.store = nn.Sequential(Two())

        def forward(self, x):
            (two,) = self.store
            return two.first(two.second(x).relu())

    units = cut(nn.Sequential(Borrows()), batches, BlockPartition())
    assert names(units) == ['0']


def test_a_layer_in_two_blocks_is_in_the_unit_of_one(batches):
    network = nn.Sequential(Two(), Two())
    network[1].second = network[0].second
    units = cut(network, batches, BlockPartition())

    assert [unit.layers for unit in units] == [
        ('0.second', '0.first'),
        ('1.first',),
    ]


def test_stages_are_the_outermost_containers_that_are_called(toy, batches):
    found = names(cut(toy('residual'), batches, StagePartition()))
    assert found == ['stem.0', 'blocks', 'head']
    # A ModuleList is never called: its blocks stay.
    found = names(cut(toy('transformer'), batches, StagePartition()))
    assert found == ['embed', 'blocks.0', 'blocks.1', 'head']


def test_a_network_may_be_one_unit(toy, batches):
    (unit,) = cut(toy('residual'), batches, NetworkPartition())

    assert unit.name == '' and len(unit.layers) == 7


def test_patterns_name_units_and_other_layers_go_to_another_partition(
    toy, batches
):
    network = toy('residual')
    found = cut(network, batches, PatternPartition(['stem', 'blocks.1']))
    assert names(found) == ['stem', 'blocks.0', 'blocks.1', 'head']

    partition = PatternPartition(
        ['blocks.1'], others=dict(type='LayerPartition')
    )
    found = names(cut(network, batches, partition))
    assert found == [
        'stem.0',
        'blocks.0.conv1',
        'blocks.0.conv2',
        'blocks.1',
        'head',
    ]


def test_the_outermost_of_nested_matches_counts(toy, batches):
    for patterns in ['blocks*'], ['blocks.0', 'blocks.0.conv1', 'blocks']:
        found = cut(toy('residual'), batches, PatternPartition(patterns))
        assert names(found) == ['stem.0', 'blocks', 'head']


def test_a_pattern_inside_a_block_divides_the_block(toy, batches):
    partition = PatternPartition(['blocks.*.attention'])
    found = names(cut(toy('transformer'), batches, partition))

    assert found[:4] == [
        'embed',
        'blocks.0.attention',
        'blocks.0.fc1',
        'blocks.0.fc2',
    ]


@pytest.mark.parametrize('pattern', ['layer9', 'blocks', 'Blocks.0'])
def test_a_pattern_that_matches_nothing_is_an_error(pattern, toy, batches):
    """A module that the forward pass does not call is no match either."""
    partition = PatternPartition(['head', pattern])
    with pytest.raises(ValueError, match=f'{pattern!r}.*`patterns`'):
        cut(toy('transformer'), batches, partition)


def test_units_are_found_before_and_after_the_swap(toy, batches):
    """The same layers, whether they are float or quantized."""
    network = toy('residual')
    recording = record(network, batches[0])
    before = BlockPartition()(network, recording)
    prepare(network, recording, before, QuantizationScheme())

    assert BlockPartition()(network, recording) == before
    again = record(network, torch.zeros(1, 3, 8, 8))
    assert names(BlockPartition()(network, again)) == names(before)


def test_the_work_grows_linearly_with_the_number_of_layers(monkeypatch):
    """Operations and modules are not visited again for each unit."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x):
            return x + self.other(self.one(x))

    def visits(layers):
        network = nn.Sequential(*(Block() for _ in range(layers)))
        recording = record(network, torch.zeros(1, 2))
        count = 0

        class Operations(list):
            def __getitem__(self, index):
                nonlocal count
                part = super().__getitem__(index)
                count += len(part)
                return part

            def __iter__(self):
                nonlocal count
                count += len(self)
                return super().__iter__()

        recording.operations = Operations(recording.operations)
        walk = nn.Module.modules

        def modules(self):
            nonlocal count
            for module in walk(self):
                count += 1
                yield module

        with monkeypatch.context() as patch:
            patch.setattr(nn.Module, 'modules', modules)
            assert len(BlockPartition()(network, recording)) == layers
        return count

    assert visits(40) < 5 * visits(10)
