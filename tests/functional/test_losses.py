from __future__ import annotations

import torch

from mmrazor_brecq.functional import lp_error, weighted_squared_error


def test_the_lp_error_is_a_mean_along_one_dimension(generator):
    x, y = torch.randn(2, 3, 4, 5, generator=generator)
    square = lp_error(x, y, 2.0)

    assert square.shape == (3, 4)
    torch.testing.assert_close(square, (x - y).square().mean(-1))
    assert (lp_error(x, x, 2.4) == 0).all()
    torch.testing.assert_close(lp_error(x, y, 1.0, 0), (x - y).abs().mean(0))


def test_equal_weights_give_the_plain_squared_error(generator):
    x, y = torch.randn(2, 6, 4, generator=generator)
    plain = weighted_squared_error(x, y)

    torch.testing.assert_close(plain, torch.nn.functional.mse_loss(x, y))
    ones = torch.ones(1, 4)
    torch.testing.assert_close(weighted_squared_error(x, y, ones), plain)


def test_weights_count_element_by_element():
    x, y = torch.tensor([[1.0, 2.0]]), torch.zeros(1, 2)
    weight = torch.tensor([[2.0, 0.0]])

    assert weighted_squared_error(x, y, weight) == 1.0
