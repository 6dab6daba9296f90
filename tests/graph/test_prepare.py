from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from mmrazor_brecq.graph import (
    BlockPartition,
    LayerPartition,
    NetworkPartition,
    QuantizationScheme,
    StagePartition,
    prepare,
    record,
    run_float,
)
from mmrazor_brecq.layers import activation_quantizers, quant_layers
from mmrazor_brecq.quantizers import ActivationQuantizer


def prepared(network, batches, partition=None, **scheme):
    """Prepare a network; return the bit widths."""
    recording = record(network, batches[0])
    units = (partition or BlockPartition())(network, recording)
    scheme = dict(weight=dict(bits=4), activation=dict(bits=3), **scheme)
    return prepare(network, recording, units, QuantizationScheme(**scheme))


def doors(network):
    """Return the indices of the quantized inputs of each unit's door."""
    return {
        name.removesuffix('door').rstrip('.'): sorted(
            int(index) for index in module.inputs
        )
        for name, module in network.named_modules()
        if name.split('.')[-1] == 'door'
    }


def quantizing_input(network):
    """Return the layers that quantize their own input."""
    return [
        name
        for name, layer in quant_layers(network).items()
        if isinstance(layer.input_quantizer, ActivationQuantizer)
    ]


def not_quantizing_input(network):
    quantizing = quantizing_input(network)
    return [n for n in quant_layers(network) if n not in quantizing]


def fit(network, x):
    """Give every quantizer a scale; return the output."""
    for layer in quant_layers(network).values():
        layer.weight_quantizer.fit(layer.weight)

    def hook(quantizer, args):
        if not quantizer.active:
            quantizer.fit(args[0])

    for quantizer in activation_quantizers(network):
        quantizer.register_forward_pre_hook(hook)
    with torch.no_grad():
        return run_float(network, x)


@pytest.mark.parametrize(
    ('name', 'at_the_door', 'inside'),
    [
        (
            'residual',
            {'blocks.0': [0], 'blocks.1': [0]},
            ['blocks.0.conv1', 'blocks.1.conv1', 'blocks.1.shortcut.0'],
        ),
        (
            'inverted',
            {'blocks.0': [0], 'blocks.1': [0]},
            ['blocks.0.expand.0', 'blocks.1.expand.0'],
        ),
        ('grouped', {}, []),
        (
            'shared',
            {'blocks.0': [0], 'head.0': [0]},
            ['blocks.0.conv1', 'head.0.conv'],
        ),
        (
            'nested',
            {'fuse.0': [0, 1], 'fuse.1': [0, 1]},
            ['fuse.0.left', 'fuse.0.right', 'fuse.1.left', 'fuse.1.right'],
        ),
        ('transformer', {}, []),
        ('uncalled', {}, []),
        ('transposed', {}, []),
    ],
)
def test_a_unit_has_a_door_if_a_layer_takes_its_input(
    name, at_the_door, inside, toy, batches
):
    network = toy(name)
    prepared(network, batches)

    assert doors(network) == at_the_door
    assert sorted(not_quantizing_input(network)) == sorted(inside)


class Block(nn.Module):
    """Unit whose input takes some path to its layers."""

    def __init__(self, path):
        super().__init__()
        self.path = path
        self.a = nn.Conv2d(4, 4, 1)
        self.b = nn.Conv2d(4, 4, 1)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x):
        return self.path(self, x)


PATHS = dict(
    same=(lambda s, x: x + s.b(s.a(x)), ['a']),
    both=(lambda s, x: s.a(x) + s.b(x), ['a', 'b']),
    identity=(lambda s, x: x + s.b(s.a(nn.Identity()(x))), ['a']),
    a_view=(lambda s, x: s.b(s.a(x.flatten(2).view(x.shape))), ['a']),
    norm_first=(lambda s, x: x + s.b(s.a(s.norm(x))), []),
    relu_first=(lambda s, x: x + s.b(s.a(x.relu())), []),
    relu_in_place=(lambda s, x: x + s.b(s.a(x.relu_())), []),
    scaled=(lambda s, x: x + s.b(s.a(x * 2)), []),
    only_added=(lambda s, x: x + s.b(s.a(torch.ones_like(x))), []),
    both_ways=(lambda s, x: s.a(x) + s.a(-x) + s.b(x), ['b']),
)


@pytest.mark.parametrize('path', PATHS)
def test_an_unchanged_input_is_quantized_at_the_door(path, batches):
    """A changed one is quantized by the layer that takes it."""
    run, inside = PATHS[path]
    network = nn.Sequential(nn.Conv2d(3, 4, 1), Block(run)).eval()
    prepared(network, batches)

    assert doors(network) == ({'1': [0]} if inside else {})
    assert not_quantizing_input(network) == [f'1.{name}' for name in inside]


def test_a_part_of_the_input_is_quantized_at_the_door(batches):
    """Half of the channels go to the layers, as in ShuffleNet."""

    class Split(Block):
        def forward(self, x):
            left, right = x.chunk(2, 1)
            return torch.cat([left, self.b(self.a(right))], 1)

    network = nn.Sequential(nn.Conv2d(3, 8, 1), Split(None)).eval()
    prepared(network, batches)

    assert doors(network) == {'1': [0]}
    assert not_quantizing_input(network) == ['1.a']


def test_the_residual_sees_the_quantized_tensor(toy, batches):
    network = toy('residual')
    prepared(network, batches)
    seen = {}
    network.blocks[0].shortcut.register_forward_pre_hook(
        lambda m, args: seen.update(shortcut=args[0])
    )
    network.blocks[0].conv1.register_forward_pre_hook(
        lambda m, args: seen.update(conv=args[0])
    )
    fit(network, batches[0])

    assert len(seen['shortcut'].unique()) <= 8
    assert torch.equal(seen['shortcut'], seen['conv'])


def test_shortcuts_stay_float_if_asked_for(each_toy, batches):
    quantized, float_shortcuts = each_toy, copy.deepcopy(each_toy)
    bits = prepared(quantized, batches)

    assert prepared(float_shortcuts, batches, quantize_shortcuts=False) == bits
    assert not doors(float_shortcuts)
    assert not not_quantizing_input(float_shortcuts)


def test_a_float_shortcut_sees_the_float_tensor(toy, batches):
    network = toy('residual')
    prepared(network, batches, quantize_shortcuts=False)
    seen = []
    network.blocks[0].register_forward_pre_hook(
        lambda m, args: seen.append(args[0])
    )
    network.blocks[0].shortcut.register_forward_pre_hook(
        lambda m, args: seen.append(args[0])
    )
    fit(network, batches[0])
    with torch.no_grad():
        network(batches[0])

    block, shortcut = seen[-2:]
    assert torch.equal(block, shortcut)
    assert len(block.unique()) > 256


def test_each_tensor_of_a_nested_input_has_its_own_scale(toy, batches):
    network = toy('nested')
    prepared(network, batches)
    seen = []
    network.fuse[1].left.register_forward_pre_hook(
        lambda m, args: seen.append(args[0])
    )
    network.fuse[1].right.register_forward_pre_hook(
        lambda m, args: seen.append(args[0])
    )
    fit(network, batches[0])
    scales = [q.scale for q in network.fuse[1].door.inputs.values()]

    assert len(scales) == 2 and scales[0] != scales[1]
    for x in seen:
        assert len(x.unique()) <= 8


def test_a_door_leaves_arguments_that_are_no_tensors_unchanged(toy, batches):
    """The second unit takes a number, which multiplies its output."""
    network = toy('nested')
    prepared(network, batches)
    fit(network, batches[0])
    x = torch.rand(2, 8, 4, 4)
    both = dict(left=x * 0, right=x)
    with torch.no_grad():
        plain = network.fuse[1](both, gain=1.0)[1]
        double = network.fuse[1](both, gain=2.0)[1]

    assert not torch.equal(plain, double)


def test_one_door_serves_every_call(toy, batches):
    """A head on two levels has one scale for both."""
    network = toy('shared')
    prepared(network, batches)
    seen = []
    network.head[0].conv.register_forward_pre_hook(
        lambda m, args: seen.append(args[0])
    )
    fit(network, batches[0])
    scale = network.head[0].door.inputs['0'].scale

    assert [len(x.shape) for x in seen] == [4, 4]
    for x in seen:
        integers = x / scale
        torch.testing.assert_close(
            integers, integers.round(), atol=1e-3, rtol=0
        )


def test_the_output_is_never_quantized(each_toy, batches):
    prepared(each_toy, batches)
    out = fit(each_toy, batches[0])

    assert len(out.unique()) > 0.9 * out.numel()


def test_nothing_changes_before_the_quantizers_are_fitted(toy, batches):
    """Activations pass; weights have no scale yet."""
    network = toy('residual')
    prepared(network, batches)

    assert not any(q.active for q in activation_quantizers(network))
    x = batches[0]
    assert activation_quantizers(network)[0](x) is x


@pytest.mark.parametrize(
    'partition',
    [LayerPartition(), BlockPartition(), NetworkPartition()],
    ids=lambda p: type(p).__name__,
)
def test_every_called_layer_and_no_other_is_swapped(
    partition, each_toy, batches
):
    recording = record(each_toy, batches[0])
    bits = prepared(each_toy, batches, partition)

    assert set(quant_layers(each_toy)) == set(bits)
    called = {call.name for call in recording.calls}
    assert set(bits) <= called
    fit(each_toy, batches[0])
    assert all(q.active for q in activation_quantizers(each_toy))


def test_a_layer_that_is_its_own_unit_quantizes_its_own_input(
    each_toy, batches
):
    prepared(each_toy, batches, LayerPartition())

    assert doors(each_toy) == {} and not_quantizing_input(each_toy) == []


@pytest.mark.parametrize(
    'partition',
    [StagePartition(), NetworkPartition()],
    ids=lambda p: type(p).__name__,
)
def test_the_same_tensors_are_quantized_in_joined_units(
    partition, each_toy, batches
):
    alone = copy.deepcopy(each_toy)
    bits = prepared(alone, batches)

    assert prepared(each_toy, batches, partition) == bits
    assert doors(each_toy) == doors(alone)
    assert quantizing_input(each_toy) == quantizing_input(alone)


def test_without_activation_bits_activations_stay_in_float(each_toy, batches):
    recording = record(each_toy, batches[0])
    units = BlockPartition()(each_toy, recording)
    scheme = QuantizationScheme(weight=dict(bits=8), activation=None)
    expected = run_float(each_toy, batches[0])
    prepare(each_toy, recording, units, scheme)

    assert activation_quantizers(each_toy) == []
    assert doors(each_toy) == {}
    out = fit(each_toy, batches[0])
    assert (out - expected).norm() / expected.norm() < 0.03


def test_quantizers_are_on_the_device_of_the_network(toy, batches):
    network = toy('residual')
    recording = record(network, batches[0])
    units = BlockPartition()(network, recording)
    prepare(network.to('meta'), recording, units, QuantizationScheme())

    assert {x.device.type for x in network.buffers()} == {'meta'}
    assert len(list(network.buffers())) > 20


def bits_of(network, kind):
    """Return the bit widths that layers have for weights or inputs."""
    found = {}
    for name, layer in quant_layers(network).items():
        if kind == 'weight':
            found[name] = layer.weight_quantizer.grid.bits
        elif isinstance(layer.input_quantizer, ActivationQuantizer):
            found[name] = layer.input_quantizer.grid.bits
    return found


@pytest.mark.parametrize(
    ('name', 'first', 'last'),
    [
        ('residual', 'stem.0', 'head'),
        ('transformer', 'embed', 'head'),
        ('transposed', 'stem.0', 'out'),
    ],
)
def test_the_first_and_the_last_layer_keep_eight_bits(
    name, first, last, toy, batches
):
    network = toy(name)
    bits = prepared(network, batches)

    for layer, pair in bits.items():
        assert pair == ((8, 8) if layer in (first, last) else (4, 3))
    assert bits_of(network, 'weight') == {n: w for n, (w, _) in bits.items()}
    for layer, found in bits_of(network, 'activation').items():
        assert found == bits[layer][1]


def test_the_last_layer_called_counts_if_none_gives_the_output(toy, batches):
    bits = prepared(toy('shared'), batches)

    assert [n for n, b in bits.items() if b == (8, 8)] == [
        'stem.0',
        'head.0.out',
    ]


def test_every_layer_that_gives_an_output_counts_as_last(batches):
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 1)
            self.between = nn.Conv2d(4, 4, 1)
            self.classes = nn.Conv2d(4, 5, 1)
            self.boxes = nn.Conv2d(4, 4, 1)

        def forward(self, x):
            x = self.between(self.stem(x))
            return dict(a=[self.boxes(x)], b=self.classes(x).flatten(2))

    bits = prepared(Heads(), batches)

    assert bits == dict(
        stem=(8, 8), between=(4, 3), classes=(8, 8), boxes=(8, 8)
    )


def test_the_first_and_last_layer_may_have_the_bits_of_all_others(
    toy, batches
):
    bits = prepared(toy('residual'), batches, first_last_bits=None)

    assert set(bits.values()) == {(4, 3)}


def test_overrides_name_layers_by_pattern(toy, batches):
    network = toy('residual')
    bits = prepared(
        network,
        batches,
        bit_overrides={
            'blocks.0.*': 5,
            'blocks.?.conv2': dict(weight=6),
            'head': dict(activation=2),
            'blocks.0.conv2': dict(activation=7),
        },
    )

    assert bits == {
        'stem.0': (8, 8),
        'blocks.0.conv1': (5, 5),
        'blocks.0.conv2': (6, 7),
        'blocks.1.conv1': (4, 3),
        'blocks.1.conv2': (6, 3),
        'blocks.1.shortcut.0': (4, 3),
        'head': (8, 2),
    }
    assert network.blocks[0].conv2.weight_quantizer.grid.bits == 6
    assert network.blocks[0].conv2.input_quantizer.grid.bits == 7


def test_later_overrides_win(toy, batches):
    first = {'blocks*': 5, 'blocks.1.conv1': 6}
    for overrides in first, dict(reversed(list(first.items()))):
        bits = prepared(toy('residual'), batches, bit_overrides=overrides)
        last = list(overrides.values())[-1]
        assert bits['blocks.1.conv1'] == (last, last)


def test_a_door_has_the_bits_of_its_widest_reader(toy, batches):
    network = toy('residual')
    prepared(
        network,
        batches,
        bit_overrides={'blocks.1.shortcut.0': dict(activation=6)},
    )

    assert network.blocks[1].door.inputs['0'].grid.bits == 6
    assert network.blocks[0].door.inputs['0'].grid.bits == 3


@pytest.mark.parametrize(
    ('scheme', 'message'),
    [
        (
            dict(bit_overrides={'layer9.*': 4}),
            "'layer9.*'.*`bit_overrides`.*blocks.0.conv1",
        ),
        (
            dict(bit_overrides={'head': dict(weights=4)}),
            r"bit_overrides\['head'\].weights.*did you mean 'weight'",
        ),
        (
            dict(bit_overrides={'head': 1}),
            r"bit_overrides\['head'\]=1.*2 to 8",
        ),
        (
            dict(bit_overrides={'head': 9}),
            "'head'.=9.*2 to 8.*`bit_overrides`",
        ),
        (
            dict(bit_overrides={'head': dict(activation=1)}),
            r"\['head'\].activation=1.*2 to 8",
        ),
        (dict(bit_overrides={'head': 4.0}), 'head.*4.0'),
        (dict(bit_overrides={'head': '4'}), '4.*head|head.*4'),
        (dict(first_last_bits=9), 'first_last_bits=9.*2 to 8'),
        (
            dict(weight=dict(bits=1)),
            'weight.bits=1, expected.*2 to 8.*`bits`',
        ),
        (
            dict(activation=dict(bits=12)),
            'activation.bits=12, expected.*2 to 8.*`bits`',
        ),
    ],
    ids=str,
)
def test_wrong_settings_are_refused_with_the_key_to_change(
    scheme, message, toy, batches
):
    network = toy('residual')
    recording = record(network, batches[0])
    units = BlockPartition()(network, recording)
    with pytest.raises(ValueError, match=message):
        prepare(network, recording, units, QuantizationScheme(**scheme))
    assert quant_layers(network) == {}
