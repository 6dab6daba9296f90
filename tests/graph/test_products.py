from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mmrazor_brecq.algorithms import BRECQ
from mmrazor_brecq.export.targets import build_target
from mmrazor_brecq.graph import record, show_products
from mmrazor_brecq.layers import MatrixProduct, products, quant_layers
from mmrazor_brecq.quantizers import LogActivationQuantizer

NEAREST = dict(type='NearestRounding')


class Runs(nn.Module):
    """Network of a layer before and after a function, on N x 6 x 8 tokens."""

    def __init__(self, run, **parts):
        super().__init__()
        self.embed = nn.Linear(8, 8)
        self.head = nn.Linear(8, 5)
        self.run = run
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.head(self.run(self, self.embed(x)))


def heads(x, count=2):
    """Split tokens into heads, N x H x L x D."""
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


def joined(x):
    return x.transpose(1, 2).flatten(2)


def attended(function):
    """A function of queries, keys and values as one of tokens."""
    return lambda s, x: joined(function(*[heads(x)] * 3))


def by_matmul(q, k, v):
    return torch.matmul((q @ k.mT).mul(0.5).softmax(-1), v)


def by_bmm(s, x):
    scores = torch.baddbmm(s.bias, x, x.transpose(1, 2), beta=0.5, alpha=0.3)
    return torch.bmm(scores.softmax(-1), x)


def by_unused_input(s, x):
    empty = torch.full((len(x), 6, 6), torch.nan)
    return torch.baddbmm(empty, x, x.mT, beta=0).softmax(-1).bmm(x)


def by_einsum(to_scores, to_values):
    def run(s, x):
        x = x.unflatten(-1, (2, -1))  # N x L x H x D
        scores = torch.einsum(to_scores, x, x).softmax(-1)
        return torch.einsum(to_values, scores, x).flatten(2)

    return run


def by_sdpa(**options):
    def run(q, k, v):
        return F.scaled_dot_product_attention(q, k, v, **options)

    return attended(run)


def grouped(s, x):
    q, k = heads(x, 4), heads(x, 4)[:, :2]
    out = F.scaled_dot_product_attention(q, k, k, enable_gqa=True)
    return joined(out)


def mha(**options):
    def run(s, x):
        return s.mha(x, x, x, **options)[0]

    return run


def crossed(s, x):
    few = x[:, :3]
    return s.mha(x, few, few, need_weights=False)[0]


MASK = torch.ones(6, 6, dtype=torch.bool).tril()
WITHOUT_ANY = MASK.clone().index_fill_(0, torch.tensor([2]), False)
BIAS = torch.zeros(6, 6).masked_fill(~MASK, -torch.inf)
ATTENTION = dict(
    mha=lambda: nn.MultiheadAttention(8, 2, batch_first=True),
)

#: Code that attends, the parts that it uses, and its layers and products.
CASES = dict(
    matmul=(attended(by_matmul), {}, 2, 2),
    bmm=(by_bmm, dict(bias=lambda: nn.Parameter(torch.ones(1, 6, 6))), 2, 2),
    unused_input=(by_unused_input, {}, 2, 2),
    einsum=(by_einsum('bihd,bjhd->bhij', 'bhij,bjhd->bihd'), {}, 2, 2),
    ellipsis=(by_einsum('...ihd,...jhd->...hij', 'bhij,bjhd->bihd'), {}, 2, 2),
    two_sums=(by_einsum('bihd,bjhd->bij', 'bij,bjhd->bihd'), {}, 2, 2),
    in_a_list=(
        lambda s, x: torch.einsum('bij, bkj -> bik', [x, x]) @ x,
        {},
        2,
        2,
    ),
    sdpa=(by_sdpa(), {}, 2, 2),
    causal=(by_sdpa(is_causal=True, scale=0.7), {}, 2, 2),
    masked=(by_sdpa(attn_mask=MASK), {}, 2, 2),
    empty_row=(by_sdpa(attn_mask=WITHOUT_ANY), {}, 2, 2),
    minus_infinity=(by_sdpa(attn_mask=BIAS), {}, 2, 2),
    grouped_queries=(grouped, {}, 2, 2),
    mha=(mha(need_weights=False), ATTENTION, 4, 2),
    mha_weights=(mha(need_weights=True), ATTENTION, 4, 2),
    mha_mask=(mha(attn_mask=BIAS, need_weights=False), ATTENTION, 4, 2),
    crossed=(crossed, ATTENTION, 5, 2),
    linear_chain=(
        lambda s, x: x @ s.a @ s.b,
        dict(
            a=lambda: nn.Parameter(torch.eye(8)),
            b=lambda: nn.Parameter(torch.eye(8)),
        ),
        4,
        0,
    ),
    two_weights=(
        lambda s, x: x * (s.a @ s.a).sum(),
        dict(a=lambda: nn.Parameter(torch.eye(8))),
        2,
        0,
    ),
    elementwise=(lambda s, x: x * x.mean(1, True).sigmoid(), {}, 2, 0),
    outer=(lambda s, x: x * (x[:, :, :1] @ x[:, :1]), {}, 2, 0),
)


@pytest.fixture
def images(generator):
    return [torch.randn(4, 6, 8, generator=generator) for _ in range(2)]


def network_of(name):
    torch.manual_seed(0)
    run, parts, *counts = CASES[name]
    parts = {key: make() for key, make in parts.items()}
    return Runs(run, **parts).eval(), counts


def quantized(network, images, bits=8, **scheme):
    scheme = {
        **dict(weight=dict(bits=bits), activation=dict(bits=bits)),
        **scheme,
    }
    model = BRECQ(network, scheme, reconstructor=NEAREST)
    teacher = model.prepare(images[0])
    assert len(list(model.reconstruct(teacher, images))) == len(model.units)
    return model.eval(), teacher


@pytest.mark.parametrize('name', CASES)
def test_products_are_layers_however_they_are_written(name, images):
    network, (layers, count) = network_of(name)
    with torch.no_grad():
        expected = network(images[0])
    model, teacher = quantized(network, images)
    with torch.no_grad():
        found, same = model(images[0]), teacher(images[0])

    torch.testing.assert_close(same, expected)
    assert len(model.account.quantized) == layers
    assert len(model.account.quantized_products) == count
    assert model.account.activation_products == count
    # A weight that is multiplied by itself is constant, and named.
    assert model.account.products == (['a'] if name == 'two_weights' else [])
    error = (found - expected).norm() / expected.norm()
    assert 0 < error < 0.05
    for product in products(model).values():
        assert product.left_quantizer.active and product.right_quantizer.active


@pytest.mark.parametrize('name', ['matmul', 'mha', 'crossed', 'linear_chain'])
def test_a_quantized_state_loads_into_the_float_network(name, images):
    network, _ = network_of(name)
    fresh = copy.deepcopy(network)
    model, _ = quantized(network, images)
    other = BRECQ(fresh, dict(weight=dict(bits=8), activation=dict(bits=8)))
    other.load_state_dict(model.state_dict())
    pickled = copy.deepcopy(other.eval())

    for same in other, pickled:
        with torch.no_grad():
            assert torch.equal(same(images[1]), model(images[1]))


def test_a_state_from_before_products_loads_without_them(images):
    network, _ = network_of('mha')
    fresh = copy.deepcopy(network)
    model, _ = quantized(
        network, images, bit_overrides={'*product*': None, 'mha.*': None}
    )
    state = model.state_dict()
    weight = state.pop('architecture.mha.in_proj.weight')
    state['architecture.mha.in_proj_weight'] = weight
    bias = state.pop('architecture.mha.in_proj.bias')
    state['architecture.mha.in_proj_bias'] = bias
    other = BRECQ(fresh, dict(weight=dict(bits=8), activation=dict(bits=8)))
    other.load_state_dict(state)

    assert not products(other)
    assert 'mha.in_proj' not in quant_layers(other.architecture)
    with torch.no_grad():
        found, expected = other.eval()(images[1]), model(images[1])
    torch.testing.assert_close(found, expected)


def test_each_head_has_a_scale(images):
    network, _ = network_of('matmul')
    model, _ = quantized(network, images, bits=4)
    (first, second) = products(model).values()

    assert first.left_quantizer.scale.shape == (2, 1, 1)
    assert second.left_quantizer.scale.shape == (2, 1, 1)
    assert int(second.left_quantizer.zero_point) == 0  # After the softmax.


@pytest.mark.parametrize('name', ['matmul', 'einsum', 'causal', 'mha'])
def test_what_a_softmax_puts_out_may_have_a_grid_of_its_own(name, images):
    network, _ = network_of(name)
    fresh = copy.deepcopy(network)
    scheme = dict(after_softmax=dict(type='LogActivationQuantizer'))
    model, _ = quantized(network, images, bits=4, **scheme)
    (first, second) = products(model).values()

    assert isinstance(second.left_quantizer, LogActivationQuantizer)
    assert second.left_quantizer.active
    for other in (
        first.left_quantizer,
        first.right_quantizer,
        second.right_quantizer,
    ):
        assert not isinstance(other, LogActivationQuantizer)
    scheme.update(weight=dict(bits=4), activation=dict(bits=4))
    other = BRECQ(fresh, scheme)
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(other.eval()(images[1]), model(images[1]))
    with pytest.raises(ValueError, match='after_softmax'):
        build_target('onnxruntime').check(model)


def test_bits_of_products_can_be_overridden(images):
    network, _ = network_of('matmul')
    overrides = {'product_0': 6, '*_1': dict(activation=3)}
    model, _ = quantized(network, images, bit_overrides=overrides)

    assert model.bits['product_0'] == (None, 6)
    assert model.bits['product_1'] == (None, 3)
    with pytest.raises(ValueError, match='matches no layer'):
        quantized(network_of('sdpa')[0], images, bit_overrides={'prod': 4})
    with pytest.raises(ValueError, match='matches no layer'):
        quantized(
            network_of('sdpa')[0], images, bit_overrides={'product_7': 4}
        )


def test_a_product_can_stay_float(images):
    network, _ = network_of('sdpa')
    model, _ = quantized(network, images, bit_overrides={'product_*': None})

    assert model.account.quantized_products == []
    assert 'by `bit_overrides`' in str(model.account)
    assert all(
        isinstance(p.left_quantizer, nn.Identity)
        for p in products(model).values()
    )


class Around(nn.Module):
    """Network whose own code attends before, between and after its units."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8))
            for _ in range(2)
        )
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        for block in self.blocks:
            x = x + by_matmul(x, x, x)
            x = x + block(x)
        return self.head(x)


def test_code_between_suspended_units_keeps_its_products(images):
    torch.manual_seed(0)
    with torch.device('cpu'):  # A function mode of the caller's.
        model, teacher = quantized(Around().eval(), images)
        with torch.no_grad():
            found, expected = model(images[0]), teacher(images[0])

    assert model.account.activation_products == 4
    assert len(model.account.quantized_products) == 4
    assert (found - expected).norm() < 0.05 * expected.norm()
    assert torch._C._len_torch_function_stack() == 0


def test_scales_of_heads_are_learned(images):
    network, _ = network_of('sdpa')
    model = BRECQ(
        network,
        dict(weight=dict(bits=4), activation=dict(bits=4)),
        dict(type='NetworkPartition'),
        dict(type='BlockReconstructor', iterations=30),
    )
    teacher = model.prepare(images[0])
    (report,) = model.reconstruct(teacher, 6 * images)

    assert 'product_0' in report.layers and report.bits['product_1'][0] is None
    assert report.after < report.before


def test_operands_of_another_rank_share_one_scale(images):
    class Twice(nn.Module):
        def forward(self, x):
            flat = x @ x.mT @ x
            return flat + joined(heads(x) @ heads(x).mT @ heads(x))

    class Shared(nn.Module):
        def forward(self, a, b):
            return a @ b

    def run(s, x):
        y = s.shared(heads(x), heads(x).mT)
        return s.shared(x, x.mT) @ x + s.twice(x) + y.sum(1) @ x

    network = Runs(run, twice=Twice(), shared=Shared()).eval()
    model, _ = quantized(network, images)

    assert products(model)['architecture.shared.product_0'].heads == (1, 1)
    with torch.no_grad():
        assert model(images[0][:, :3]).shape == (4, 3, 5)  # Shorter.


def test_other_heads_than_in_the_calibration_are_refused(images):
    network, _ = network_of('sdpa')
    model, _ = quantized(network, images)
    (first, _) = products(model).values()

    with pytest.raises(ValueError, match='expected 2 heads'):
        first(torch.ones(1, 3, 4, 4), torch.ones(1, 3, 4, 4))


def test_a_fused_kernel_is_named(images):
    @torch.library.custom_op('vit_test::fused_attention', mutates_args=())
    def fused(x: torch.Tensor) -> torch.Tensor:
        return (x @ x.mT).softmax(-1) @ x

    network = Runs(lambda s, x: torch.ops.vit_test.fused_attention(x)).eval()
    model = BRECQ(network)
    model.prepare(images[0])

    (reason,) = model.account.left_float.values()
    assert 'fused kernel' in reason and 'fused_attn=False' in reason


def test_a_cache_of_keys_is_taken_as_it_comes(images):
    def run(s, x):
        keys, out = x[:, :0], []
        for i in range(x.shape[1]):
            keys = torch.cat([keys, x[:, i : i + 1]], 1)
            scores = x[:, i : i + 1] @ keys.mT
            out.append(scores.softmax(-1) @ keys)
        return torch.cat(out, 1)

    model, _ = quantized(Runs(run).eval(), images)

    assert len(model.account.quantized_products) == 11


def test_code_that_looks_into_a_product_keeps_it(images, warnings_log):
    """A rewrite that would change the output is undone and named."""

    def run(s, x):
        s.calls = getattr(s, 'calls', 0) + 1
        return F.scaled_dot_product_attention(x, x, x) * s.factor(x)

    class Factor(nn.Module):
        def forward(self, x):
            again = 'taken_products' in vars(self)
            return (x @ x.mT).mean() * 0 + (2 if again else 1)

    network = Runs(run, factor=Factor()).eval()
    assert show_products(network, record(network, images[0]))

    assert isinstance(network.product_0, MatrixProduct)
    assert not hasattr(network.factor, 'product_0')
    assert any('factor: its matrix products stay' in x for x in warnings_log)


def test_all_layers_of_torchvision_swin_are_found():
    models = pytest.importorskip('torchvision.models.swin_transformer')
    torch.manual_seed(0)
    for block in (models.SwinTransformerBlock, models.SwinTransformerBlockV2):
        network = models.SwinTransformer(
            [2, 2], 8, [2], [2], [2, 2], num_classes=5, block=block
        ).eval()
        x = [torch.randn(2, 3, 8, 8)]
        with torch.no_grad():
            expected = network(x[0])
        model, teacher = quantized(network, x)
        with torch.no_grad():
            same, found = teacher(x[0]), model(x[0])

        torch.testing.assert_close(same, expected)
        assert len(model.account.quantized) == model.account.layers
        assert len(model.account.quantized_products) == 4
        assert (found - expected).norm() < 0.1 * expected.norm()
