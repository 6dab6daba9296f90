from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from mmrazor_brecq.quantizers import ActivationQuantizer
from mmrazor_brecq.quantizers.activation import MaskPool

LAYOUTS = list(
    itertools.product(('contiguous_format', 'channels_last'), repeat=2)
)


@pytest.fixture
def x(generator):
    return torch.randn(4, 8, 5, 6, generator=generator)


def fitted(x, **kwargs):
    quantizer = ActivationQuantizer(**kwargs)
    quantizer.fit(x)
    return quantizer


def pool(seed=0, **kwargs):
    generator = torch.Generator().manual_seed(seed)
    return MaskPool(generator, torch.device('cpu'), **kwargs)


def test_without_a_scale_the_input_is_returned(x):
    quantizer = ActivationQuantizer(bits=2)

    assert quantizer(x) is x
    quantizer.fit(x)
    assert len(quantizer(x).unique()) <= 4


@pytest.mark.parametrize('symmetric', [False, True])
@pytest.mark.parametrize('bits', [2, 4, 8])
def test_the_output_is_on_the_grid(bits, symmetric, x):
    quantizer = fitted(x, bits=bits, symmetric=symmetric)
    found = quantizer(x)

    assert found.shape == x.shape
    assert len(found.unique()) <= 2**bits
    whole = found / quantizer.scale
    torch.testing.assert_close(whole, whole.round(), atol=1e-3, rtol=0)
    if symmetric:
        assert quantizer.zero_point == 0


def test_eight_bits_are_close_to_float_and_two_are_not(x):
    errors = [
        ((fitted(x, bits=bits)(x) - x).norm() / x.norm()) for bits in (8, 2)
    ]

    assert errors[0] < 0.01 < 0.1 < errors[1]


def test_a_rectified_tensor_uses_all_integers(x):
    quantizer = fitted(x.relu(), bits=4, observer=dict(type='MinMaxObserver'))

    assert quantizer.zero_point == 0
    whole = quantizer(x.relu()) / quantizer.scale
    assert whole.min() == 0 and whole.max().round() == 15


def test_the_extremes_of_a_large_tensor_are_covered(generator):
    """A single outlier counts, although a sample could miss it."""
    x = torch.rand(3, ActivationQuantizer.sample_size, generator=generator)
    x[1, 1234] = 50.0
    quantizer = fitted(x, observer=dict(type='MinMaxObserver'))

    torch.testing.assert_close(quantizer.scale, torch.tensor(50 / 255))


def test_freezing_keeps_the_learned_scale(x):
    quantizer = fitted(x, bits=4)
    fitted_scale = quantizer.scale.clone()
    quantizer.learn(pool())
    with torch.no_grad():
        quantizer.log_scale.fill_(0.4)
        learned = quantizer.eval()(x)
    quantizer.freeze()

    assert quantizer.log_scale is None and not quantizer.trainable()
    assert quantizer.scale > fitted_scale
    assert torch.equal(quantizer(x), learned)


def test_forgetting_returns_to_the_fitted_scale(x):
    quantizer = fitted(x, bits=4)
    before = quantizer(x)
    quantizer.learn(pool())
    with torch.no_grad():
        quantizer.log_scale.fill_(0.4)
    quantizer.forget()
    quantizer.freeze()

    assert torch.equal(quantizer(x), before)


def test_learning_begins_at_the_fitted_scale(x):
    quantizer = fitted(x, bits=4).eval()
    before = quantizer(x)
    quantizer.learn(pool())

    assert torch.equal(quantizer(x), before)


@pytest.mark.parametrize('learn_scale', [True, False])
def test_the_scale_is_learned_if_the_config_asks_for_it(learn_scale, x):
    quantizer = fitted(x, bits=3, learn_scale=learn_scale)
    quantizer.learn(pool())
    out = quantizer.train()(x.requires_grad_())
    out.square().sum().backward()

    assert len(quantizer.trainable()) == learn_scale
    if learn_scale:
        (log_scale,) = quantizer.trainable()
        assert log_scale.grad.abs() > 0


def test_elements_are_dropped_in_training_only(x):
    quantizer = fitted(x, bits=2, drop_prob=0.5)
    whole = quantizer(x)
    quantizer.learn(pool())
    mixed = quantizer.train()(x)

    real = (mixed == x).float().mean()
    assert 0.4 < real < 0.6
    assert ((mixed == x) | torch.isclose(mixed, whole)).all()
    assert torch.equal(quantizer.eval()(x), whole)
    assert not torch.equal(quantizer.train()(x), mixed)


@pytest.mark.parametrize('drop_prob', [0.0, 1.0])
def test_all_or_nothing_may_be_dropped(drop_prob, x):
    quantizer = fitted(x, bits=2, drop_prob=drop_prob)
    whole = quantizer(x)
    quantizer.learn(pool())

    expected = x if drop_prob else whole
    torch.testing.assert_close(quantizer.train()(x), expected)


@pytest.mark.parametrize('drop_prob', [-0.1, 1.5])
def test_a_drop_prob_is_between_0_and_1(drop_prob):
    with pytest.raises(ValueError, match=f'drop_prob={drop_prob}.*`drop_prob'):
        ActivationQuantizer(drop_prob=drop_prob)


def test_a_fitted_state_activates_a_new_quantizer(x):
    quantizer = fitted(x, bits=3)
    other = ActivationQuantizer(bits=3)
    other.load_state_dict(quantizer.state_dict())

    assert torch.equal(other(x), quantizer(x))


def test_a_state_without_a_scale_deactivates_it(x):
    other = fitted(x, bits=3)
    other.load_state_dict(ActivationQuantizer(bits=3).state_dict())

    assert other(x) is x


def test_a_state_of_another_bit_width_is_refused_by_name(x):
    unit = nn.Module()
    unit.input_quantizer = fitted(x, bits=3)
    state = unit.state_dict()
    unit.input_quantizer = ActivationQuantizer(bits=5)

    with pytest.raises(ValueError, match='input_quantizer.*3 bits.* 5'):
        unit.load_state_dict(state)


@pytest.mark.parametrize('size', [3, 1000])
@pytest.mark.parametrize('prob', [0.2, 0.5])
def test_masks_have_the_fraction_of_ones_that_is_asked_for(size, prob):
    masks = pool()
    drawn = torch.stack([masks.cut(size, prob) for _ in range(300)])

    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    assert abs(drawn.mean() - prob) < 0.06
    # All elements have the same probability.
    assert (drawn.mean(0) - prob).abs().max() < 0.15


def test_masks_differ_between_calls_and_depend_on_the_seed():
    first, second = pool(3), pool(3)
    masks = [first.cut(500, 0.5) for _ in range(5)]

    for i, mask in enumerate(masks):
        assert torch.equal(mask, second.cut(500, 0.5))
        assert not any(torch.equal(mask, other) for other in masks[:i])
    assert not torch.equal(pool(4).cut(500, 0.5), masks[0])


def test_a_pool_grows_with_the_size_of_its_masks():
    masks = pool(spare=16)
    masks.cut(10, 0.5)

    assert len(masks.cut(1000, 0.5)) == 1000


@pytest.mark.parametrize('layouts', LAYOUTS, ids=str)
def test_mixed_elements_keep_their_positions(layouts, x):
    """For every memory order of both tensors."""
    a, b = (
        t.to(memory_format=getattr(torch, layout))
        for t, layout in zip((x, x + 100), layouts)
    )
    mixed = pool().mix(a, b, 0.25)
    from_a = mixed == x

    assert (from_a | torch.isclose(mixed, x + 100)).all()
    assert 0.15 < from_a.float().mean() < 0.35
