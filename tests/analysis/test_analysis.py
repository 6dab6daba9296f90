"""What units cost, and how weights and inputs lie on their grids."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import mmrazor_brecq
from mmrazor_brecq.analysis import (
    describe,
    divergence,
    layer_details,
    swapped,
    unit_costs,
)
from mmrazor_brecq.reconstruction import NearestRounding
from mmrazor_brecq.report import page


@pytest.fixture
def rounded(quantize, images):
    """Builds a toy that is rounded to nearest, with all that is known."""

    def build(name, **kwargs):
        model, teacher = quantize(name, **kwargs)
        model.eval()
        rounding = NearestRounding(batch_size=8)
        reports = list(model.reconstruct(teacher, images, 0, rounding))
        return model, teacher, reports

    return build


def state(network):
    return {k: v.clone() for k, v in network.state_dict().items()}


@pytest.mark.parametrize('name', ['residual', 'shared', 'nested'])
def test_units_cost_what_they_do_alone(rounded, images, name):
    model, teacher, _ = rounded(name)
    before, modules = state(teacher), list(teacher.modules())
    costs = unit_costs(model, teacher, images)
    assert list(costs) == [unit.name for unit in model.units]
    assert list(teacher.modules()) == modules
    assert all(torch.equal(v, before[k]) for k, v in state(teacher).items())
    # A copy whose other units are float costs the same as a whole network.
    last = model.units[-1]
    alone = copy.deepcopy(model)
    others = {u.name: u for u in model.units if u is not last}
    with swapped(
        alone.architecture, {n: teacher.get_submodule(n) for n in others}
    ):
        expected = divergence(alone, teacher, images)
    assert costs[last.name] == pytest.approx(expected, rel=1e-3, abs=1e-9)


def test_the_only_unit_costs_as_much_as_the_network(rounded, images):
    partition = dict(type='NetworkPartition')
    model, teacher, _ = rounded('residual', partition=partition)
    (cost,) = unit_costs(model, teacher, images).values()
    expected = divergence(model, teacher, images)
    assert cost == pytest.approx(expected, rel=1e-3) and cost > 0


def test_a_module_under_two_names_is_swapped_under_both():
    one, other = nn.Linear(2, 2), nn.Linear(2, 2)
    network = nn.ModuleDict(dict(a=one, b=nn.ModuleDict(dict(c=one))))
    with pytest.raises(ArithmeticError), swapped(network, {'a': other}):
        assert network['a'] is network['b']['c'] is other
        raise ArithmeticError
    assert network['a'] is network['b']['c'] is one


def test_every_layer_and_its_input_lie_on_a_grid(rounded):
    model, teacher, reports = rounded('residual')
    histograms = {k: h for r in reports for k, h in r.histograms.items()}
    details = layer_details(model, teacher, histograms)
    assert [x['name'] for x in details] == list(model.bits)
    for layer in details:
        bits = model.bits[layer['name']]
        assert (layer['weight']['bits'], layer['input']['bits']) == bits
        for tensor in layer['weight'], layer['input']:
            assert len(tensor['counts']) == 64 and sum(tensor['counts']) > 0
            assert tensor['to'] - tensor['from'] == 2 ** tensor['bits'] - 1
            assert 0 <= tensor['clipped'] < 0.2
        assert 5 < layer['weight']['noise_db'] < 60
    # Two layers take the block's input, which its door quantizes once.
    sources = [x['input']['quantizer'] for x in details]
    assert sources.count('blocks.1.door.inputs.0') == 2


def test_what_is_clipped_and_lost_is_counted(rounded):
    model, teacher, reports = rounded('residual')
    histograms = {k: h for r in reports for k, h in r.histograms.items()}
    layer = model.architecture.head
    with torch.no_grad():
        layer.stored_weight[1] = layer.weight_quantizer.zero_point[1]
        layer.weight_quantizer.scale /= 4
        layer.input_quantizer.scale /= 4
    name = layer.input_quantizer and 'head.input_quantizer'
    head = layer_details(model, teacher, histograms)[-1]
    assert head['weight']['lost_channels'] == 1
    assert head['weight']['clipped'] > 0.3
    found = histograms[name]
    edge = layer.input_quantizer.scale * (255.5 - int(zero_of(layer)))
    ends = torch.linspace(found['low'], found['high'], 65)
    outside = sum(c for c, x in zip(found['counts'], ends) if x > edge)
    assert head['input']['clipped'] == pytest.approx(
        outside / sum(found['counts']), abs=0.05
    )


def zero_of(layer):
    return layer.input_quantizer.zero_point


def test_float_inputs_have_no_grid(rounded, images):
    model, teacher, reports = rounded('transformer', bits=(4, None))
    found = describe(model, teacher, images, reports)
    assert all(layer['input'] is None for layer in found['layers'])
    assert all(unit['cost'] >= 0 for unit in found['units'])


class Heads(nn.Module):
    """Attention whose second head has values a hundred times as large."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 4, 4)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2)
        return self.head(self.attention(x, x, x)[0].mean(1))


def test_products_are_described_each_head_on_its_own_grid(images):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Heads().eval()
    with torch.no_grad():
        network.attention.in_proj_weight[20:] *= 100
    _, report = mmrazor_brecq.quantize(
        network,
        torch.cat(list(images.split())),
        8,
        8,
        reconstructor=dict(type='NearestRounding', batch_size=8),
    )
    products = [x for x in report['layers'] if x['weight'] is None]
    assert len(products) == 2 and {x['kind'] for x in products} == {'product'}
    for side in 'input', 'right':
        for product in products:
            found = product[side]
            assert sum(found['counts']) > 0 and found['bits'] == 8
            # All of the grid is used, and next to nothing lies beyond it.
            assert found['clipped'] < 0.01
            assert found['high'] - found['low'] > 60
    text = page(report)
    assert text.count('histogram of the left operand') == 2
    assert text.count('histogram of the right operand') == 2
