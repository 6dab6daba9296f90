from __future__ import annotations

import pytest
import torch

from mmrazor_brecq.quantizers import (
    ActivationQuantizer,
    LogActivationQuantizer,
    MaskPool,
)


@pytest.fixture
def attention(generator):
    """What a softmax puts out, N x H x L x L."""
    scores = torch.randn(4, 3, 20, 20, generator=generator)
    return scores.mul(torch.tensor([3.0, 4, 5]).view(3, 1, 1)).softmax(-1)


def fitted(x, **kwargs):
    quantizer = LogActivationQuantizer(**kwargs)
    quantizer.fit(x)
    return quantizer


@pytest.mark.parametrize('bits', [2, 3, 4, 8])
def test_each_head_has_points_at_equal_ratios_and_zero(bits, attention):
    quantizer = fitted(attention, bits=bits, heads=3)
    found = quantizer(attention)

    assert quantizer.scale.shape == (3, 1, 1)
    for head in found.unbind(1):
        points = head.unique()
        assert points.min() >= 0
        assert len(points) <= 2**bits
        places = points[points > 0].log2() * quantizer.per_octave
        steps = places.diff()
        torch.testing.assert_close(steps, steps.round(), atol=1e-3, rtol=0)


@pytest.mark.parametrize('bits', [3, 4])
def test_many_small_values_lose_less_than_on_a_uniform_grid(bits, generator):
    values = torch.rand(1000, generator=generator)
    values[:980] *= 0.06
    uniform = ActivationQuantizer(bits)
    uniform.fit(values)
    errors = [
        (quantizer(values) - values).square().sum()
        for quantizer in (fitted(values, bits=bits), uniform)
    ]

    assert errors[0] < 0.5 * errors[1]


def test_gradients_pass_where_a_value_has_a_point(attention):
    quantizer = fitted(attention, bits=3)
    quantizer.learn()
    x = attention.clone().requires_grad_()
    y = quantizer(x)
    y.sum().backward()

    there = (y > 0) & (x <= quantizer.scale)
    assert there.any() and (y == 0).any()
    # The point is the value times a ratio between two points.
    torch.testing.assert_close(x.grad[there], (y / x)[there])
    assert (x.grad[y == 0] == 0).all()
    assert (quantizer.log_scale.grad).isfinite()


def test_elements_that_a_mask_drops_stay_real(attention, generator):
    quantizer = fitted(attention, bits=2, heads=3, drop_prob=0.5)
    quantizer.learn(MaskPool(generator, torch.device('cpu')))
    quantizer.train()
    found = quantizer(attention.mT).mT

    same = (found == attention).float().mean()
    assert 0.4 < same < 0.7
    quantizer.eval()
    assert (quantizer(attention) == attention).float().mean() < 0.1


def test_values_below_zero_are_refused(attention):
    with pytest.raises(ValueError, match='after_softmax'):
        LogActivationQuantizer(4).fit(attention - 0.5)


def test_a_state_has_the_points_and_wrong_ones_are_refused(attention):
    quantizer = fitted(attention, bits=4, heads=3)
    other = LogActivationQuantizer(4, heads=3)
    other.load_state_dict(quantizer.state_dict())
    assert torch.equal(other(attention), quantizer(attention))

    wrong = dict(quantizer.state_dict(), per_octave=torch.tensor(0))
    with pytest.raises(ValueError, match='per_octave.*is 0'):
        other.load_state_dict(wrong)


def test_all_zeros_have_a_scale():
    quantizer = fitted(torch.zeros(2, 3, 4, 4), bits=4, heads=3)

    assert quantizer.active
    assert (quantizer(torch.zeros(2, 3, 4, 4)) == 0).all()
