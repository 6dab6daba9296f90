from __future__ import annotations

import numpy as np
import pytest

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')
from mmrazor_brecq.export.session import open_session  # noqa: E402


@pytest.fixture
def large_products():
    """Return a model that multiplies the largest integers."""
    helper, kind = onnx.helper, onnx.TensorProto.UINT8
    tensors = dict(
        weight=np.full((16, 16), 127, np.int8),
        one=np.float32(1),
        zero=np.uint8(0),
        none=np.int8(0),
        scale=np.float32(16 * 255 * 127 / 200),
    )
    nodes = [
        helper.make_node('DequantizeLinear', ['x', 'one', 'zero'], ['a']),
        helper.make_node('DequantizeLinear', ['weight', 'one', 'none'], ['b']),
        helper.make_node('MatMul', ['a', 'b'], ['c']),
        helper.make_node('QuantizeLinear', ['c', 'scale', 'zero'], ['y']),
    ]
    graph = helper.make_graph(
        nodes,
        'large',
        [helper.make_tensor_value_info('x', kind, [1, 16])],
        [helper.make_tensor_value_info('y', kind, [1, 16])],
        [
            onnx.numpy_helper.from_array(np.array(value), name)
            for name, value in tensors.items()
        ],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid('', 21)], ir_version=10
    )
    return model.SerializeToString()


@pytest.mark.parametrize('fused', [True, False])
def test_sums_of_large_products_do_not_saturate(large_products, fused):
    session = open_session(large_products, fused)
    found = session.run(None, {'x': np.full((1, 16), 255, np.uint8)})[0]
    assert (found == 200).all()
