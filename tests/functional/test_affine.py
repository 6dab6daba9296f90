from __future__ import annotations

import pytest
import torch

from mmrazor_brecq.functional import (
    dequantize,
    dequantize_rows,
    integer_range,
    quantize,
    rounding_error,
)

RANGES = [(2, False, 1), (3, True, 0), (4, False, 9), (8, True, -5)]


@pytest.mark.parametrize('bits', range(2, 9))
def test_an_integer_range_holds_two_to_the_bits_and_zero(bits):
    for signed in (False, True):
        low, high = integer_range(bits, signed)
        assert high - low + 1 == 2**bits
        assert low <= 0 <= high
        assert (low < 0) is signed


@pytest.mark.parametrize(('bits', 'signed', 'zero_point'), RANGES)
def test_values_are_quantized_to_the_nearest_integer(
    bits, signed, zero_point, generator
):
    low, high = integer_range(bits, signed)
    scale, zero_point = torch.tensor(0.3), torch.tensor(zero_point)
    possible = (torch.arange(low, high + 1) - zero_point) * scale
    x = torch.randn(300, generator=generator) * 3 * scale * 2**bits

    q = quantize(x, scale, zero_point, low, high)
    found = dequantize(q, scale, zero_point)

    assert set(q.tolist()) <= set(range(low, high + 1))
    best = (x[:, None] - possible).abs().amin(1)
    torch.testing.assert_close((x - found).abs(), best)


def test_zero_and_quantized_values_do_not_change(generator):
    low, high = integer_range(4, False)
    scale = torch.rand(7, 1, generator=generator) + 0.1
    zero_point = torch.randint(low, high + 1, (7, 1), generator=generator)
    values = dequantize(torch.arange(low, high + 1), scale, zero_point)

    again = quantize(values, scale, zero_point, low, high)

    assert torch.equal(again, torch.arange(16.0).expand(7, -1))
    zero = quantize(torch.zeros(7, 1), scale, zero_point, low, high)
    assert torch.equal(zero, zero_point.float())


@pytest.mark.parametrize('p', [2.0, 2.4])
def test_the_rounding_error_is_that_of_quantizing(p, generator):
    x = torch.randn(3, 50, generator=generator)
    scale = 0.1 + torch.rand(3, 7, generator=generator)
    zero_point = torch.randint(-2, 2, (3, 7), generator=generator).float()
    found = rounding_error(x, scale, zero_point, -2, 1, p)

    for i in range(7):
        params = scale[:, i, None], zero_point[:, i, None]
        rounded = dequantize(quantize(x, *params, -2, 1), *params)
        expected = (x - rounded).abs().pow(p).mean(1)
        torch.testing.assert_close(found[:, i], expected)


def test_rows_have_the_dtype_that_layers_compute_in(generator):
    q, grad = torch.randn(2, 3, 50, generator=generator) * 3
    params = (
        torch.rand(3, 1, generator=generator) + 0.1,
        torch.ones(3, 1),
        -4,
        3,
    )
    a, b = (q.clone().requires_grad_() for _ in range(2))
    with torch.autocast('cpu', torch.bfloat16):
        low_precision = dequantize_rows(a, *params)
        double = dequantize_rows(q.double(), *params)
    exact = dequantize_rows(b, *params)
    assert (
        low_precision.dtype == torch.bfloat16 and double.dtype == torch.float64
    )
    assert torch.equal(low_precision, exact.to(low_precision.dtype))

    low_precision.backward(grad.to(low_precision.dtype))
    exact.backward(grad.to(low_precision.dtype).float())
    assert a.grad.dtype == torch.float32
    torch.testing.assert_close(a.grad, b.grad)
