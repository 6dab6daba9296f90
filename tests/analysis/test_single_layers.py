"""Single layers of toys: what each costs alone, and what leaving it saves."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from mmrazor_brecq.analysis import SingleLayers, divergence
from mmrazor_brecq.reconstruction import NearestRounding


@pytest.fixture
def layers_of(quantize, images):
    """Builds a toy, rounded to nearest, and what measures its layers."""

    def build(name, **kwargs):
        model, teacher = quantize(name, **kwargs)
        model.eval()
        list(model.reconstruct(teacher, images, 0, NearestRounding()))
        return SingleLayers(model, teacher, images, 5)

    return build


def outputs(network, x):
    with torch.no_grad():
        return network(x)


@pytest.mark.parametrize(
    'name', ['residual', 'inverted', 'shared', 'nested', 'transformer']
)
def test_each_layer_is_measured_both_ways_and_nothing_stays_changed(
    layers_of, images, name
):
    layers = layers_of(name)
    model, teacher = layers.model.architecture, layers.teacher
    batch = images.batch(0)
    before = outputs(model, batch), outputs(teacher, batch)
    rows = [layers(name) for name in layers.names]
    assert [row['name'] for row in rows] == list(layers.model.bits)
    for row in rows:
        assert row['alone'] > 0 and row['left_out'] >= 0
        assert 0 < row['signal_db'] < 70
    assert any(row['left_out'] < layers.whole for row in rows)
    after = outputs(model, batch), outputs(teacher, batch)
    assert all(torch.equal(x, y) for x, y in zip(before, after))
    assert not any(m._forward_pre_hooks for m in teacher.modules())


def test_the_only_layer_costs_all_and_left_out_nothing(layers_of, images):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())
    layers = layers_of(network, quantization=dict(first_last_bits=None))
    row = layers(layers.names[0])
    assert row['alone'] == pytest.approx(layers.whole) and layers.whole > 0
    assert row['left_out'] == pytest.approx(0, abs=1e-9)


def test_the_network_can_be_the_layer(layers_of):
    quantization = dict(first_last_bits=None)
    flat = nn.Conv2d(3, 4, 8)
    layers = layers_of(flat, quantization=quantization)
    row = layers('')
    assert row['alone'] == pytest.approx(layers.whole) and layers.whole > 0
    assert row['left_out'] == 0


def test_a_layer_takes_its_door_along(layers_of, images):
    """Alone with it; and left out, its unit's input is float."""
    layers = layers_of('residual')
    (door,) = {d for d in layers._doors('blocks.1.conv1')}
    assert door == 'blocks.1'
    batch = images.batch(0)
    with layers.alone('blocks.1.conv1') as network:
        seen = []
        hook = network.blocks[1].shortcut.register_forward_hook(
            lambda module, args, output: seen.append(args[0])
        )
        outputs(network, batch)
        hook.remove()
    levels = 2 ** layers.model.bits['blocks.1.conv1'][1]
    assert len(seen[0].unique()) <= levels
    with layers.left_out('blocks.1.conv1') as network:
        inside = network.blocks[1]
        assert isinstance(inside.door.inputs['0'], nn.Identity)
        assert type(inside.conv1) is nn.Conv2d


def test_the_worst_layer_is_found(quantize, images):
    """Two bits in one place, eight elsewhere."""
    worst = 'blocks.0.conv2'
    overrides = {'*': 8, worst: 2}
    model, teacher = quantize(
        'residual', quantization=dict(bit_overrides=overrides)
    )
    model.eval()
    list(model.reconstruct(teacher, images, 0, NearestRounding()))
    before = copy.deepcopy(model.state_dict())
    layers = SingleLayers(model, teacher, images, 10**6)
    rows = {name: layers(name) for name in layers.names}
    assert layers.images == 5
    assert layers.whole == pytest.approx(divergence(model, teacher, images))
    assert max(rows, key=lambda n: rows[n]['alone']) == worst
    assert min(rows, key=lambda n: rows[n]['left_out']) == worst
    assert rows[worst]['left_out'] < layers.whole / 2
    assert min(rows, key=lambda n: rows[n]['signal_db']) == worst
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])
