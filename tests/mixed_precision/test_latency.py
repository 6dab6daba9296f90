from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from mmrazor_brecq.mixed_precision import (
    LatencyTable,
    model_shape,
)
from mmrazor_brecq.mixed_precision.latency import (
    format_rows,
    layer_graph,
    measure_latency,
)

onnxruntime = pytest.importorskip('onnxruntime')


def calls(prepared, name):
    model = prepared(name)
    shape = model_shape(model.architecture, torch.zeros(1, 3, 8, 8))
    return [call for layer in shape.layers for call in layer.calls]


@pytest.mark.parametrize('name', ['grouped', 'transformer'])
@pytest.mark.parametrize('bits', [(32, 32), (4, 32), (8, 8)])
def test_a_graph_does_the_work_of_its_layer(prepared, name, bits):
    for call in calls(prepared, name):
        session = onnxruntime.InferenceSession(
            layer_graph(call, *bits), providers=['CPUExecutionProvider']
        )
        x = np.ones((1, *call.input), np.float32)
        (out,) = session.run(None, {'x': x})
        assert out.shape == (1, *call.output)
        assert np.isfinite(out).all()


def test_rows_are_a_table(prepared, tmp_path):
    model = prepared('residual')
    shape = model_shape(model.architecture, torch.zeros(1, 3, 8, 8))
    found = [call for layer in shape.layers for call in layer.calls]
    rows = list(measure_latency(found, (4, 8), (8, 32), repeats=3))
    assert len(rows) == 4 * len({call.key for call in found})
    assert all(row['latency_ms'] > 0 for row in rows)
    for ending in ('.csv', '.json'):
        path = tmp_path / f'table{ending}'
        path.write_text(format_rows(rows, ending))
        table = LatencyTable(str(path))
        bits = {layer.name: (4, 8) for layer in shape.layers}
        expected = sum(
            row['latency_ms']
            for call in found
            for row in rows
            if (row['shape'], row['weight_bits'], row['activation_bits'])
            == (call.key, 4, 8)
        )
        assert table.of(shape, bits) == pytest.approx(expected)


def test_more_work_takes_longer(prepared):
    call = calls(prepared, 'residual')[1]
    more = type(call)(
        **{
            **vars(call),
            'input': (8, 128, 128),
            'output': (8, 128, 128),
        }
    )
    rows = measure_latency([call, more], (8,), (8,), repeats=10)
    less_time, more_time = (row['latency_ms'] for row in rows)
    assert more_time > less_time
    assert more.macs > call.macs


def test_only_two_endings_are_taken():
    assert json.loads(format_rows([], '.json', dict(a=1)))['device'] == {
        'a': 1
    }
    with pytest.raises(ValueError, match=r"'\.txt', expected"):
        format_rows([], '.txt')
