from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from mmrazor_brecq.quantizers import Rounding, WeightQuantizer
from mmrazor_brecq.registry import MODELS

SHAPES = [(6, 3, 3, 3), (6, 20), (6, 2, 5)]
CASES = [
    dict(bits=bits, symmetric=symmetric, per_channel=per_channel)
    for bits in (2, 4, 8)
    for symmetric in (False, True)
    for per_channel in (False, True)
]
each_case = pytest.mark.parametrize('case', CASES, ids=str)


@pytest.fixture(params=SHAPES, ids=str)
def weight(request, generator):
    return torch.randn(request.param, generator=generator)


def fitted(weight, **case):
    quantizer = WeightQuantizer(len(weight), **case)
    quantizer.fit(weight)
    return quantizer


def disturb(quantizer, generator):
    """Change all parameters, as learning does."""
    with torch.no_grad():
        for parameter in quantizer.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter += 0.3 * noise


@each_case
def test_each_channel_has_few_values(case, weight):
    quantizer = fitted(weight, **case)
    found = quantizer(weight)

    assert found.shape == weight.shape
    assert quantizer.scale.shape == ((6,) if case['per_channel'] else (1,))
    for row in found:
        assert len(row.unique()) <= 2 ** case['bits']
    again = quantizer(found)
    torch.testing.assert_close(again, found)


def test_eight_bits_are_close_to_float(weight):
    found = fitted(weight, bits=8)(weight)
    error = (found - weight).norm() / weight.norm()

    assert error < 0.01
    coarse = fitted(weight, bits=2)(weight)
    assert (coarse - weight).norm() / weight.norm() > 0.1


def test_one_scale_per_channel_is_no_worse_than_one_per_layer(generator):
    weight = torch.randn(6, 50, generator=generator)
    weight *= torch.logspace(-2, 1, 6)[:, None]
    errors = [
        (fitted(weight, bits=4, per_channel=one)(weight) - weight).norm(dim=1)
        for one in (True, False)
    ]

    assert (errors[0] <= errors[1] * 1.1).all()
    assert errors[0][0] < errors[1][0] / 5


@each_case
def test_learning_begins_at_the_real_weights(case, weight):
    quantizer = fitted(weight, **case)
    low, high = quantizer.grid.range
    column = quantizer.scale.reshape(-1, *[1] * (weight.dim() - 1))
    zero_point = quantizer.zero_point.reshape(column.shape)
    position = weight / column + zero_point
    inside = (position >= low) & (position <= high)

    quantizer.learn(weight)
    quantizer.train()
    soft = quantizer(weight)

    slack = (1e-5 * column).expand_as(weight)
    assert inside.float().mean() > 0.3
    assert ((soft - weight).abs() <= slack + 1e-6)[inside].all()
    # In evaluation mode it is nearest rounding.
    quantizer.eval()
    nearest = fitted(weight, **case)(weight)
    torch.testing.assert_close(quantizer(weight), nearest)


@each_case
@pytest.mark.parametrize('rounding', ['AdaRound', 'Nearest'])
def test_freezing_keeps_the_evaluated_weights_bit_for_bit(
    case, rounding, weight, generator
):
    quantizer = fitted(weight, rounding=dict(type=rounding), **case)
    quantizer.learn(weight)
    disturb(quantizer, generator)
    with torch.no_grad():
        before = quantizer.eval()(weight)
        integers = quantizer.freeze(weight)

    assert integers.dtype == torch.int8
    low, high = quantizer.grid.range
    assert low <= integers.min() and integers.max() <= high
    assert torch.equal(quantizer(integers), before)
    assert not list(quantizer.parameters())


@each_case
def test_freezing_during_learning_rounds_to_the_nearer_integer(
    case, weight, generator
):
    quantizer = fitted(weight, **case)
    quantizer.learn(weight)
    disturb(quantizer, generator)
    other = copy.deepcopy(quantizer).eval()
    integers = quantizer.train().freeze(weight)

    assert torch.equal(integers, other.freeze(weight))


def test_learned_scales_and_roundings_are_both_kept(generator):
    weight = torch.randn(6, 20, generator=generator)
    quantizer = fitted(weight, bits=3)
    fitted_scale = quantizer.scale.clone()
    nearest = copy.deepcopy(quantizer).freeze(weight)
    quantizer.learn(weight)
    with torch.no_grad():
        quantizer.log_scale.fill_(0.5 / quantizer.log_scale_factor)
        quantizer.rounding.alpha.fill_(9.0)
    integers = quantizer.freeze(weight)

    torch.testing.assert_close(
        quantizer.scale, fitted_scale * torch.tensor(0.5).exp()
    )
    assert (integers >= nearest).all() and (integers > nearest).any()


def test_forgetting_returns_to_the_fitted_scales(weight, generator):
    quantizer = fitted(weight, bits=3)
    before = quantizer(weight)
    state = copy.deepcopy(quantizer.state_dict())
    quantizer.learn(weight)
    disturb(quantizer, generator)
    assert not torch.equal(quantizer(weight), before)
    quantizer.forget()

    assert torch.equal(quantizer(weight), before)
    assert list(quantizer.state_dict()) == list(state)


@pytest.mark.parametrize('learn_scale', [True, False])
def test_gradients_reach_rounding_and_scales(learn_scale, weight):
    quantizer = fitted(weight, bits=3, learn_scale=learn_scale)
    quantizer.learn(weight)
    quantizer.train()
    quantizer(weight).square().sum().backward()

    (alpha,) = quantizer.trainable()
    assert alpha.numel() == weight.numel() and alpha.grad.abs().sum() > 0
    if learn_scale:
        # d/ds of sum((exp(s) w)^2) at 0 is twice the sum itself.
        norm = quantizer(weight).detach().square().flatten(1).sum(1)
        torch.testing.assert_close(
            quantizer.log_scale.grad, 2 * norm * quantizer.log_scale_factor
        )
    else:
        assert quantizer.log_scale is None


@each_case
def test_a_state_is_loaded_into_a_new_quantizer(case, weight):
    quantizer = fitted(weight, **case)
    integers = quantizer.freeze(weight)
    other = WeightQuantizer(len(weight), **case)
    assert other.scale.isnan().all()
    other.load_state_dict(quantizer.state_dict())

    assert torch.equal(other(integers), quantizer(integers))


def test_a_state_of_another_bit_width_is_refused_by_name():
    layer = nn.Module()
    layer.weight_quantizer = WeightQuantizer(4, bits=3)
    state = layer.state_dict()
    layer.weight_quantizer = WeightQuantizer(4, bits=5)

    with pytest.raises(ValueError, match='weight_quantizer .*3 bits.* 5'):
        layer.load_state_dict(state)


def test_a_rounding_of_another_package_is_built_by_its_name(weight):
    @MODELS.register_module()
    class UpwardsForTheTest(Rounding):
        def start(self, position):
            self.integers = position.ceil()

        def forward(self):
            return self.integers

    try:
        quantizer = fitted(
            weight,
            bits=8,
            observer=dict(type='MinMaxObserver'),
            rounding=dict(type='UpwardsForTheTest'),
        )
        quantizer.learn(weight)
    finally:
        MODELS.module_dict.pop('UpwardsForTheTest')

    moved = quantizer(weight) - weight
    scale = quantizer.scale.reshape(-1, *[1] * (weight.dim() - 1))
    assert (moved < scale).all()
    # Except for clipped weights: rounding the zero point moves the range.
    assert (moved > -1e-6).float().mean() > 0.9
