from __future__ import annotations

import pytest
import torch

from mmrazor_brecq.functional import (
    fake_quantize,
    integer_range,
)

RANGES = [(2, False, 1), (3, True, 0), (4, False, 9), (8, True, -5)]


def away_from_ties(generator, scale, shape=(400,), span=300):
    """Return values that are at most 0.4 scales from a quantized one."""
    whole = torch.randint(-span, span, shape, generator=generator)
    rest = torch.rand(shape, generator=generator) * 0.8 - 0.4
    return (whole + rest).double() * scale


def straight_through(
    x, log_scale, initial_scale, zero_point, qmin, qmax, keep=None
):
    """Return the definition of ``fake_quantize``, left to autograd."""
    scale = initial_scale * log_scale.exp()
    position = x / scale
    q = position + (position.round() + zero_point - position).detach()
    q = torch.where(q < qmin, qmin, torch.where(q > qmax, qmax, q))
    out = (q - zero_point) * scale
    return out if keep is None else keep * out + (1 - keep) * x


@pytest.mark.parametrize(('bits', 'signed', 'zero_point'), RANGES)
@pytest.mark.parametrize('log_scale', [0.0, 0.3])
@pytest.mark.parametrize('dropped', [False, True])
def test_fake_quantize_and_its_gradients_are_those_of_the_definition(
    bits, signed, zero_point, log_scale, dropped, generator
):
    scale = torch.tensor(0.07, dtype=torch.double)
    zero_point = torch.tensor(zero_point)
    x = away_from_ties(generator, scale * torch.tensor(log_scale).exp())
    keep = (torch.rand(400, generator=generator) < 0.5).double()
    upstream = torch.randn(400, generator=generator).double()
    found = []
    for function in fake_quantize, straight_through:
        a = x.clone().requires_grad_()
        s = torch.tensor(log_scale, dtype=torch.double, requires_grad=True)
        out = function(
            a,
            s,
            scale,
            zero_point,
            *integer_range(bits, signed),
            keep if dropped else None,
        )
        (out * upstream).sum().backward()
        found.append((out.detach(), a.grad, s.grad))

    for ours, reference in zip(*found):
        torch.testing.assert_close(ours, reference, rtol=1e-6, atol=1e-9)


def test_the_gradient_for_the_scale_has_the_form_of_the_paper(generator):
    """``sum(g * out) - sum(g * inside * x)`` (LSQ's, times the scale)."""
    scale, zero_point = torch.tensor(0.1).double(), torch.tensor(6)
    x = away_from_ties(generator, scale, span=20)
    upstream = torch.randn(400, generator=generator).double()
    log_scale = torch.zeros((), dtype=torch.double, requires_grad=True)

    out = fake_quantize(x, log_scale, scale, zero_point, 0, 15)
    (out * upstream).sum().backward()

    position = (x / scale).round() + zero_point
    inside = (position >= 0) & (position <= 15)
    assert 0 < inside.float().mean() < 1
    expected = (upstream * out.detach()).sum() - (upstream * inside * x).sum()
    torch.testing.assert_close(log_scale.grad, expected)


def test_clipped_elements_follow_the_scale_and_pass_no_gradient():
    scale, zero_point = torch.tensor(0.5), torch.tensor(0)
    x = torch.tensor([-9.0, 0.6, 9.0], requires_grad=True)
    log_scale = torch.zeros((), requires_grad=True)

    out = fake_quantize(x, log_scale, scale, zero_point, 0, 3)
    out.sum().backward()

    assert out.tolist() == [0, 0.5, 1.5]
    assert x.grad.tolist() == [0, 1, 0]
    # The clipped elements give 0 and 1.5, the rounding error gives -0.1.
    torch.testing.assert_close(log_scale.grad, torch.tensor(1.4))


def test_dropped_elements_are_not_quantized(generator):
    x = torch.randn(1000, generator=generator)
    keep = (torch.rand(1000, generator=generator) < 0.5).float()
    args = torch.zeros(()), torch.tensor(0.2), torch.tensor(7), 0, 15

    mixed = fake_quantize(x, *args, keep)

    dropped = keep == 0
    assert torch.equal(mixed[dropped], x[dropped])
    torch.testing.assert_close(
        mixed[~dropped], fake_quantize(x, *args)[~dropped]
    )


@pytest.mark.parametrize('symmetric', [False, True])
def test_eight_bits_err_by_at_most_half_a_scale(symmetric, generator):
    low, high = integer_range(8, symmetric)
    scale = torch.tensor(2 / (high - low))
    zero_point = torch.tensor(0 if symmetric else 128)
    x = torch.rand(1000, generator=generator) * 1.9 - 0.95

    out = fake_quantize(x, torch.zeros(()), scale, zero_point, low, high)

    assert (out - x).abs().max() <= scale / 2 * (1 + 1e-4)
    assert len(out.unique()) > 200


LAYOUTS = dict(
    channels_last=lambda x: x.to(memory_format=torch.channels_last),
    transposed=lambda x: x.transpose(1, 3).contiguous().transpose(1, 3),
    sliced=lambda x: torch.cat([x, x + 1, x + 2], 3)[..., 1::3],
    expanded=lambda x: x[:, :1].expand_as(x),
    repeated=lambda x: x[:1, :, :, :1].expand_as(x),
    one_channel=lambda x: x[:, :1].to(memory_format=torch.channels_last),
    scalar=lambda x: x[0, 0, 0, 0],
    empty=lambda x: x[:0],
)


@pytest.mark.parametrize('upstream', ['same', 'other'])
@pytest.mark.parametrize('layout', LAYOUTS)
def test_memory_order_does_not_matter(layout, upstream, generator):
    x = LAYOUTS[layout](torch.randn(2, 3, 4, 5, generator=generator))
    weight = torch.randn(2, 3, 4, 5, generator=generator)
    plain = LAYOUTS[layout](weight)
    weight = (
        plain
        if upstream == 'same'
        else plain.clone(memory_format=torch.contiguous_format)
    )
    scale, zero_point = torch.tensor(0.3), torch.tensor(7)
    results = []
    for function in fake_quantize, straight_through:
        a = x.detach().requires_grad_()
        s = torch.zeros((), requires_grad=True)
        out = function(a, s, scale, zero_point, 0, 15)
        out.backward(weight)
        results.append((out.detach(), a.grad, s.grad))

    for ours, reference in zip(*results):
        torch.testing.assert_close(ours, reference)


@pytest.mark.parametrize('dropped', [False, True])
def test_fake_quantize_is_exact_on_low_precision_inputs(dropped, generator):
    """It computes in float32, and rounds its outputs only."""
    x = (torch.randn(400, generator=generator) * 40).bfloat16()
    keep = (torch.rand(400, generator=generator) < 0.5).float()
    params = torch.tensor(0.3), torch.tensor(131), 0, 255
    found = {}
    for dtype in torch.bfloat16, torch.float32:
        values = x.to(dtype, copy=True).detach().requires_grad_()
        log_scale = torch.tensor(0.1, requires_grad=True)
        out = fake_quantize(
            values, log_scale, *params, keep if dropped else None
        )
        out.square().sum().backward()
        assert out.dtype == values.grad.dtype == dtype
        found[dtype] = out.float(), values.grad.float(), log_scale.grad
    for low_precision, exact in zip(*found.values()):
        torch.testing.assert_close(low_precision, exact, rtol=0.01, atol=0.5)


def test_fake_quantize_returns_the_dtype_of_the_next_layer(generator):
    scale, zero_point = torch.tensor(0.1), torch.tensor(8)
    log_scale = torch.zeros((), requires_grad=True)
    x = torch.randn(64, generator=generator, requires_grad=True)
    with torch.autocast('cpu', torch.bfloat16):
        low_precision = fake_quantize(x, log_scale, scale, zero_point, 0, 15)
        double = fake_quantize(x.double(), log_scale, scale, zero_point, 0, 15)
    exact = fake_quantize(x, log_scale, scale, zero_point, 0, 15)
    assert (
        low_precision.dtype == torch.bfloat16 and double.dtype == torch.float64
    )
    assert torch.equal(low_precision, exact.to(low_precision.dtype))

    grad = torch.randn(64, generator=generator).to(torch.bfloat16)
    found = torch.autograd.grad(low_precision, (x, log_scale), grad)
    expected = torch.autograd.grad(exact, (x, log_scale), grad.float())
    assert found[0].dtype == x.dtype
    for a, b in zip(found, expected):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize('dropped', [False, True])
def test_a_scale_learns_the_same_whether_its_input_learns_or_not(
    dropped, generator
):
    x = torch.randn(64, generator=generator)
    keep = (torch.rand(64, generator=generator) < 0.5).float()
    params = torch.tensor(0.1), torch.tensor(8), 0, 15
    found = []
    for values in x, x.clone().requires_grad_():
        log_scale = torch.zeros((), requires_grad=True)
        out = fake_quantize(
            values, log_scale, *params, keep if dropped else None
        )
        out.square().sum().backward()
        found.append(log_scale.grad)
    assert x.grad is None
    torch.testing.assert_close(*found)


@pytest.mark.parametrize('dropped', [False, True])
def test_each_head_has_its_scale_and_its_gradient(dropped, generator):
    scales = torch.tensor([0.05, 0.2, 1.0], dtype=torch.double)[:, None, None]
    zero_point = torch.tensor(5)
    x = away_from_ties(generator, scales, (2, 3, 4, 5), span=20).mT
    keep = (torch.rand(x.numel(), generator=generator) < 0.5).double()
    upstream = torch.randn(x.shape, generator=generator).double()
    found = []
    for function in fake_quantize, straight_through:
        a = x.clone().requires_grad_()
        s = torch.zeros_like(scales, requires_grad=True)
        mask = keep if dropped else None
        if dropped and function is straight_through:
            mask = keep.view(x.shape)
        out = function(a, s, scales, zero_point, 0, 15, mask)
        (out * upstream).sum().backward()
        found.append((out.detach(), a.grad, s.grad))

    for ours, reference in zip(*found):
        torch.testing.assert_close(ours, reference, rtol=1e-6, atol=1e-9)
    with pytest.raises(ValueError, match=r'\(2, 4, 4\), expected 3 heads'):
        fake_quantize(x[0, :2, :4, :4], s, scales, zero_point, 0, 15)
