from __future__ import annotations

import copy
import functools
import io
import pickle
import types
import warnings

import pytest
import torch
from mmcv.cnn import Linear as MMCVLinear
from mmcv.cnn.bricks import Conv2dAdaptivePadding
from torch import nn
from torch.nn import functional as F

from mmrazor_brecq.layers import (
    QuantLayer,
    activation_quantizers,
    is_quantizable,
    quant_layers,
    quantize_layer,
)
from mmrazor_brecq.quantizers import ActivationQuantizer, WeightQuantizer


class Standardized(nn.Conv2d):
    """Convolution that reads its weight and skips ``_conv_forward``."""

    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


LAYERS = dict(
    conv1d=(lambda: nn.Conv1d(4, 6, 3, padding=1), (2, 4, 9)),
    conv2d=(lambda: nn.Conv2d(4, 6, 3, bias=False), (2, 4, 9, 8)),
    conv3d=(lambda: nn.Conv3d(4, 6, 2), (2, 4, 3, 4, 5)),
    grouped=(
        lambda: nn.Conv2d(4, 6, 3, 2, 2, dilation=2, groups=2),
        (2, 4, 9, 8),
    ),
    reflected=(
        lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode='reflect'),
        (2, 4, 9, 8),
    ),
    same=(lambda: nn.Conv2d(4, 6, 5, padding='same'), (2, 4, 9, 8)),
    linear=(lambda: nn.Linear(4, 6), (2, 4)),
    linear_3d=(lambda: nn.Linear(4, 6, bias=False), (2, 5, 4)),
    of_mmcv=(lambda: MMCVLinear(4, 6), (2, 4)),
    adaptive=(lambda: Conv2dAdaptivePadding(4, 6, 3, 2), (2, 4, 9, 8)),
    standardized=(lambda: Standardized(4, 6, 3), (2, 4, 9, 8)),
)


@pytest.fixture(params=LAYERS)
def pair(request, generator):
    """A layer and an input for it."""
    build, shape = LAYERS[request.param]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = build()
    return layer, torch.randn(shape, generator=generator)


def quantized(layer, x=None, bits=8):
    layer = copy.deepcopy(layer).requires_grad_(False)
    weight = WeightQuantizer(6, bits)
    activation = ActivationQuantizer(bits)
    quantize_layer(layer, weight, activation)
    if x is not None:
        weight.fit(layer.weight)
        activation.fit(x)
    return layer


def test_eight_bits_are_close_to_float(pair):
    layer, x = pair
    with torch.no_grad():
        expected, found = layer(x), quantized(layer, x)(x)

    assert 0 < (found - expected).norm() / expected.norm() < 0.02


def test_weight_and_input_are_both_quantized(pair):
    """The forward pass is that of the float layer, on quantized tensors."""
    layer, x = pair
    quant = quantized(layer, x, bits=3)
    with torch.no_grad():
        found = quant(x)
        layer.weight.copy_(quant.weight)
        expected = layer(quant.input_quantizer(x))

    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_freezing_does_not_change_the_output(pair):
    layer, x = pair
    quant = quantized(layer, x, bits=3)
    quant.weight_quantizer.learn(quant.stored_weight)
    with torch.no_grad():
        for parameter in quant.weight_quantizer.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
        quant.eval()
        before = quant(x)
        assert not quant.frozen
        quant.freeze()

    assert quant.frozen and quant.stored_weight.dtype == torch.int8
    assert torch.equal(quant(x), before)
    weight = quant.stored_weight
    quant.freeze()
    assert quant.stored_weight is weight


def test_a_frozen_state_loads_into_a_layer_that_is_not_frozen(pair):
    layer, x = pair
    quant = quantized(layer, x, bits=3)
    quant.freeze()
    other = quantized(copy.deepcopy(layer), bits=3)
    nn.init.normal_(other.stored_weight)
    other.load_state_dict(quant.state_dict())

    assert other.frozen
    assert torch.equal(other(x), quant(x))


def test_a_float_state_loads_too(pair):
    layer, x = pair
    quant = quantized(layer)
    state = {k: v + 1 for k, v in layer.state_dict().items()}
    found = quant.load_state_dict(state, strict=False)

    assert not found.unexpected_keys
    assert not quant.frozen
    assert torch.equal(quant.stored_weight, layer.weight + 1)


def test_gradients_reach_rounding_and_scales(pair):
    layer, x = pair
    quant = quantized(layer, x, bits=3)
    quant.weight_quantizer.learn(quant.stored_weight)
    quant.train()
    quant(x).square().sum().backward()

    (alpha,) = quant.weight_quantizer.trainable()
    assert alpha.grad.abs().sum() > 0
    assert quant.weight_quantizer.log_scale.grad.abs().sum() > 0


def test_the_layer_object_stays(pair):
    """With its hooks, hyper-parameters and keys."""
    layer, x = pair
    seen = []
    layer.register_forward_hook(lambda *args: seen.append(1))
    keys, bias, name = set(layer.state_dict()), layer.bias, str(layer)
    kind = type(layer)
    quantize_layer(layer, WeightQuantizer(6), None)
    layer.weight_quantizer.fit(layer.weight)
    layer(x)

    assert seen == [1]
    assert isinstance(layer, QuantLayer) and isinstance(layer, kind)
    assert layer.bias is bias
    assert keys <= set(layer.state_dict())
    assert name.split('(')[1].rstrip(')') in repr(layer)
    assert isinstance(layer.input_quantizer, nn.Identity)


def test_copies_are_independent(pair):
    layer, x = pair
    quant = quantized(layer, x, bits=3)
    other = copy.deepcopy(quant)
    other.freeze()

    assert not quant.frozen
    assert torch.equal(quant(x), other(x))


def test_rows_are_output_channels_in_every_memory_order(generator):
    """Such as a weight that is a transposed view."""
    weight = torch.randn(5, 6, generator=generator)
    weight *= torch.logspace(-2, 1, 6)
    layers = [nn.Linear(5, 6, bias=False) for _ in range(2)]
    layers[0].weight = nn.Parameter(weight.t())
    layers[1].weight = nn.Parameter(weight.t().contiguous())
    x = torch.randn(3, 5, generator=generator)
    quants = [quantized(layer, x, bits=3) for layer in layers]

    assert not layers[0].weight.is_contiguous()
    torch.testing.assert_close(quants[0](x), quants[1](x))
    for quant in quants:
        quant.freeze()
    torch.testing.assert_close(quants[0](x), quants[1](x))


@pytest.mark.parametrize(
    'layer',
    [
        nn.ConvTranspose2d(4, 6, 3),
        nn.BatchNorm2d(6),
        nn.Embedding(4, 6),
    ],
)
def test_other_layers_are_refused_by_name(layer):
    assert not is_quantizable(layer)
    with pytest.raises(TypeError, match=f'{type(layer).__name__}.*Conv1d'):
        quantize_layer(layer, WeightQuantizer(6), None)


def test_layers_and_quantizers_are_found_by_name():
    network = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Linear(4, 6))
    assert quant_layers(network) == {}
    quantize_layer(network[0], WeightQuantizer(6), ActivationQuantizer())
    quantize_layer(network[2], WeightQuantizer(6), None)

    assert quant_layers(network) == {'0': network[0], '2': network[2]}
    assert list(quant_layers(network, 'net')) == ['net.0', 'net.2']
    assert activation_quantizers(network) == [network[0].input_quantizer]


@pytest.mark.parametrize('state', ['new', 'fitted', 'learning', 'frozen'])
def test_the_weight_attribute_has_real_values(pair, state):
    """They are those that the layer computes with."""
    layer, x = pair
    quant = quantized(layer, None if state == 'new' else x, bits=3)
    if state in ('learning', 'frozen'):
        quant.weight_quantizer.learn(quant.stored_weight)
    if state == 'frozen':
        quant.freeze()
    weight = quant.weight

    assert weight.dtype == torch.float32 and weight.shape == layer.weight.shape
    if state == 'new':
        assert torch.equal(weight, layer.weight)
        return
    twin = copy.deepcopy(layer).requires_grad_(False)
    twin.weight.copy_(weight)
    assert torch.equal(quant(x), twin(quant.input_quantizer(x)))
    if state == 'frozen':
        scale = quant.weight_quantizer.scale
        whole = weight / scale.view(-1, *[1] * (weight.dim() - 1))
        torch.testing.assert_close(whole, whole.round(), atol=1e-4, rtol=0)


def test_the_weight_is_quantized_once_per_call(pair):
    layer, x = pair
    quant = quantized(layer, x)
    calls = []
    quant.weight_quantizer.register_forward_hook(lambda *_: calls.append(1))
    quant(x)

    assert calls == [1]


def test_a_failing_quantizer_does_not_reveal_the_integers(pair):
    layer, x = pair
    quant = quantized(layer, x)
    quant.freeze()
    del quant.weight_quantizer.grid

    with pytest.raises(RuntimeError, match="quantized weight.*'grid'"):
        quant(x)


def test_a_change_of_type_keeps_the_integers(pair):
    layer, x = pair
    quant = quantized(layer, x)
    expected = quant(x)
    quant.freeze()
    state = quant.double().state_dict()

    assert quant.stored_weight.dtype == torch.int8
    assert state['weight'].dtype == torch.int8
    torch.testing.assert_close(quant.float()(x), expected)


def test_the_input_may_be_a_keyword_argument(pair):
    layer, x = pair
    quant = quantized(layer, x, bits=3)
    name = 'x' if isinstance(layer, Standardized) else 'input'
    name = (
        'x'
        if isinstance(layer, (MMCVLinear, Conv2dAdaptivePadding))
        else (name)
    )

    assert torch.equal(quant(**{name: x}), quant(x))


def doubled(layer, x):
    return F.linear(x, 2 * layer.weight, layer.bias)


@pytest.mark.parametrize('how', ['method', 'partial'])
def test_a_forward_that_is_set_on_the_object_is_kept(how, generator):
    """It uses the quantized weight and input, each copy its own."""
    layer, x = nn.Linear(4, 6), torch.randn(2, 4, generator=generator)
    layer.forward = (
        types.MethodType(doubled, layer)
        if how == 'method'
        else functools.partial(doubled, layer)
    )
    quant = quantized(layer, x, bits=3)
    with torch.no_grad():
        expected = F.linear(
            quant.input_quantizer(x), 2 * quant.weight, quant.bias
        )
        assert torch.equal(quant(x), expected)
        other = copy.deepcopy(quant)
        other.stored_weight.zero_()
        assert torch.equal(quant(x), expected)
        assert not torch.equal(other(x), expected)


@pytest.mark.parametrize(
    'again', [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))]
)
def test_a_quantized_layer_can_be_copied_and_pickled(pair, again):
    """Although its class cannot be imported by name."""
    layer, x = pair
    quant = quantized(layer, x)
    quant.freeze()
    other = again(quant)
    assert type(other) is type(quant)
    assert torch.equal(other(x), quant(x))


@pytest.mark.slow
def test_a_traced_layer_returns_the_same(pair):
    layer, x = pair
    if type(layer).__module__.startswith('mmcv'):
        pytest.skip('its code turns tensors into Python numbers')
    quant = quantized(layer, x).eval()
    quant.freeze()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        warnings.filterwarnings('ignore', '.*is deprecated', FutureWarning)
        traced = torch.jit.trace(quant, x)
    for images in x, 0.3 * x[:1]:
        assert torch.equal(traced(images), quant(images))
    torch.jit.save(traced, io.BytesIO())
