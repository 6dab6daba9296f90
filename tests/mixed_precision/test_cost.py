from __future__ import annotations

import itertools
import json

import pytest
import torch

from mmrazor_brecq.mixed_precision import (
    BitOperations,
    Choice,
    LatencyTable,
    WeightBytes,
    model_shape,
    parse_budget,
    parse_uniform,
)
from mmrazor_brecq.report import weight_bytes

COSTS = {cost.name: cost for cost in (WeightBytes(), BitOperations())}


@pytest.fixture
def shape_of(prepared):
    def build(name, **quantization):
        model = prepared(name, **quantization)
        images = torch.zeros(1, 3, 8, 8)
        return model, model_shape(model.architecture, images)

    return build


@pytest.mark.parametrize('name', ['residual', 'inverted', 'transformer'])
@pytest.mark.parametrize('bits', [2, 3, 8])
def test_weight_bytes_are_those_of_the_report(shape_of, name, bits):
    model, shape = shape_of(name, weight=dict(bits=bits))
    expected = weight_bytes(model.architecture)['quantized']
    assert WeightBytes().of(shape, model.bits) == expected


def test_shapes_tell_layers_apart(shape_of):
    _, shape = shape_of('grouped')
    calls = {layer.name: layer.calls[0] for layer in shape.layers}
    assert calls['blocks.0.0.0'].key == (
        'conv2d 8x8x8 w8x2x3x3 s1x1 p1x1 d1x1 g4'
    )
    assert calls['blocks.0.1.0'].dilation == (2, 2)
    assert calls['blocks.0.2.0'].stride == (2, 2)
    assert calls['head'].key == 'linear 8 w5x8'
    assert calls['blocks.0.0.0'].macs == 8 * 8 * 8 * 2 * 3 * 3
    assert calls['head'].macs == 8 * 5


def test_every_call_of_a_shared_layer_counts(shape_of):
    model, shape = shape_of('shared')
    (tower,) = (x for x in shape.layers if x.name == 'head.0.conv')
    assert len(tower.calls) == 2
    macs = sum(call.macs for call in tower.calls)
    assert macs == 8 * 8 * 9 * (8 * 8 + 4 * 4)
    assert BitOperations().layer(tower, 4, 8) == macs * 32


def test_a_cost_is_the_same_by_layers_and_by_choices(shape_of):
    model, shape = shape_of('residual')
    layers = [layer.name for layer in shape.layers]
    choices = [Choice('weight', '', (name,)) for name in layers[:-1]]
    choices.append(Choice('activation', '', tuple(layers[1:3])))
    for cost in COSTS.values():
        allowed = {choice.name: (2, 4, 8) for choice in choices}
        function = cost.pairwise(shape, model.bits, choices, allowed)
        for w, a in itertools.product((2, 4, 8), repeat=2):
            found = {c.name: w if c.kind == 'weight' else a for c in choices}
            bits = {name: [w, 8] for name in layers}
            bits[layers[-1]][0] = model.bits[layers[-1]][0]
            for name in layers[1:3]:
                bits[name][1] = a
            assert function(found) == pytest.approx(cost.of(shape, bits))


def test_float_activations_count_as_32_bits(shape_of):
    _, shape = shape_of('residual')
    names = [layer.name for layer in shape.layers]
    cost = BitOperations()
    assert cost.of(shape, dict.fromkeys(names, (4, None))) == cost.of(
        shape, dict.fromkeys(names, (4, 32))
    )


def write_table(path, rows):
    rows = [dict(zip(LatencyTable.COLUMNS, row)) for row in rows]
    if path.suffix == '.json':
        path.write_text(json.dumps(dict(device={}, rows=rows)))
    else:
        lines = [','.join(LatencyTable.COLUMNS)]
        lines += [','.join(map(str, row.values())) for row in rows]
        path.write_text('\n'.join(lines))
    return str(path)


@pytest.mark.parametrize('ending', ['csv', 'json'])
def test_latency_comes_from_the_table(shape_of, tmp_path, ending):
    _, shape = shape_of('residual')
    keys = dict.fromkeys(c.key for layer in shape.layers for c in layer.calls)
    rows = [
        (key, w, 32, (i + 1) * w) for i, key in enumerate(keys) for w in (4, 8)
    ]
    cost = LatencyTable(write_table(tmp_path / f'table.{ending}', rows))
    bits = {layer.name: (4, None) for layer in shape.layers}
    order = {key: i + 1 for i, key in enumerate(keys)}
    expected = sum(4 * order[layer.calls[0].key] for layer in shape.layers)
    assert cost.of(shape, bits) == expected
    bits['blocks.0.conv2'] = (2, None)
    with pytest.raises(ValueError, match=r"'blocks\.0\.conv2'.* 2-bit"):
        cost.of(shape, bits)


@pytest.mark.parametrize(
    'content', ['shape,weight_bits\nx,4', '[1, 2]', '{"rows": [{}]}']
)
def test_a_file_that_is_no_table_is_refused(tmp_path, content):
    ending = '.json' if content[0] in '[{' else '.csv'
    (tmp_path / f'bad{ending}').write_text(content)
    with pytest.raises(ValueError, match='expected rows with shape'):
        LatencyTable(str(tmp_path / f'bad{ending}'))


def test_a_template_that_was_not_filled_in_is_refused(tmp_path):
    path = write_table(tmp_path / 'table.csv', [('linear 8 w5x8', 4, 4, '')])
    with pytest.raises(ValueError, match='no latency table'):
        LatencyTable(path)


@pytest.mark.parametrize(
    'text, limits',
    [
        ('weight_bytes<=0.4MB', dict(weight_bytes=4e5)),
        ('weight_bytes <= 400', dict(weight_bytes=400)),
        ('bops<=1.5G', dict(bops=1.5e9)),
        ('weight_bytes<=2KiB, bops<=1e3', dict(weight_bytes=2048, bops=1e3)),
    ],
)
def test_budgets_are_read(text, limits):
    assert parse_budget(text, COSTS).limits == limits


@pytest.mark.parametrize(
    'text, message',
    [
        ('weight_bytes<=0.4MP', "unit of measure 'MP', expected one of B, kB"),
        ('weights<=0.4MB', "limits 'weights', expected one of weight_bytes"),
        ('weight_bytes=4', 'is no limit'),
        ('weight_bytes<=', 'is no limit'),
        ('latency_ms<=4', '--latency-table'),
    ],
)
def test_bad_budgets_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_budget(text, COSTS)


def test_names_of_uniform_models_are_read():
    assert parse_uniform('w3') == (3, None)
    assert parse_uniform('W4A8') == (4, 8)
    for text in ('w9', 'a4', 'w3a', '3'):
        with pytest.raises(ValueError, match='expected one such as w3'):
            parse_uniform(text)
