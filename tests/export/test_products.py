"""Products of activations run in integers, and are proven like layers."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mmrazor_brecq.algorithms import BRECQ
from mmrazor_brecq.layers import products

pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')
from mmrazor_brecq.export.build import Options, build  # noqa: E402
from mmrazor_brecq.export.constants import compare_constants  # noqa: E402
from mmrazor_brecq.export.match import compare_layers  # noqa: E402
from mmrazor_brecq.export.nodes import producer  # noqa: E402
from mmrazor_brecq.export.nodes import products as nodes  # noqa: E402
from mmrazor_brecq.export.targets import build_target  # noqa: E402
from mmrazor_brecq.export.verify import verify  # noqa: E402


class Tokens(nn.Module):
    """Attention by heads, by torch's own module, and of one rank less."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(3, 8)
        self.mha = nn.MultiheadAttention(8, 2, batch_first=True)
        self.register_buffer('bias', torch.randn(1, 16, 16))
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.embed(x.flatten(2).transpose(1, 2))
        q = x.unflatten(-1, (2, 4)).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, q, q).transpose(1, 2).flatten(2)
        y = y + self.mha(x, x, x)[0]
        return self.head((x @ x.mT + self.bias).softmax(-1) @ y).mean(1)


@cache
def quantized(bits, symmetric):
    """Return a quantized network, its images, and its file."""
    torch.manual_seed(0)
    images = [torch.randn(8, 3, 4, 4) for _ in range(2)]
    one = dict(bits=bits, symmetric=symmetric)
    scheme = dict(weight=one, activation=one)
    nearest = dict(type='NearestRounding')
    model = BRECQ(Tokens().eval(), scheme, reconstructor=nearest)
    teacher = model.prepare(images[0])
    assert list(model.reconstruct(teacher, images))
    network = model.eval().architecture
    target = build_target('onnxruntime')
    return network, images, build(network, None, images, Options(target))


@pytest.mark.parametrize(
    'scheme',
    [(8, False), pytest.param((4, True), marks=pytest.mark.slow)],
    ids=['w8a8', 'w4a4 symmetric'],
)
def test_products_run_in_integers_and_are_proven(scheme):
    network, images, model = quantized(*scheme)
    proof = verify(network, model, [(x, x) for x in images])
    compared = {match.name for match in proof.layers}

    assert len(products(network)) == 6
    assert {*products(network)} <= compared
    assert not proof.constants
    assert proof.problem('', 0.9, 0.999, 1) is None
    integers = sum(
        count
        for op, count in proof.operators.items()
        if op in ('MatMulIntegerToFloat', 'QLinearMatMul', 'QGemm')
    )
    assert integers == 6 + 4  # With the four linear layers.
    assert not {'MatMul', 'FusedMatMul', 'Gemm'} & set(proof.operators)
    named = {
        name: (producer(node.inputs[0], 'MatMul') or node).name
        for name, node in nodes(model)
    }
    assert named == {name: name for name in products(network)}


def test_a_wrong_scale_of_one_head_is_found():
    network, images, model = quantized(8, False)
    other = copy.deepcopy(network)
    name, product = next(
        (n, p) for n, p in products(other).items() if p.heads == (2, 2)
    )
    product.left_quantizer.scale[1] *= 1.01
    wrong = compare_constants(other, model)

    assert 'scales of its heads' in wrong[f'{name}.left_quantizer']
    matches = compare_layers(other, model, images[0], images[0])
    found = {match.name: match for match in matches}
    assert found[f'{name}.left_quantizer'].exact < 0.999
