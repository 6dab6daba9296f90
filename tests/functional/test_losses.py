from __future__ import annotations

import pytest
import torch

from mmrazor_brecq.functional import weighted_squared_error


def test_equal_weights_give_the_plain_squared_error(generator):
    x, y = torch.randn(2, 6, 4, generator=generator)
    plain = weighted_squared_error(x, y)

    torch.testing.assert_close(plain, torch.nn.functional.mse_loss(x, y))
    ones = torch.ones(1, 4)
    torch.testing.assert_close(weighted_squared_error(x, y, ones), plain)


def test_weights_apply_element_by_element():
    x, y = torch.tensor([[1.0, 2.0]]), torch.zeros(1, 2)
    weight = torch.tensor([[2.0, 0.0]])

    assert weighted_squared_error(x, y, weight) == 1.0


@pytest.mark.parametrize('images', [1, 5])
@pytest.mark.parametrize(
    'order', [torch.contiguous_format, torch.channels_last]
)
def test_gradients_are_those_of_the_formula(images, order, generator):
    """Whatever the memory order of output, target and weight is."""
    x, y = torch.randn(2, 5, 4, 3, 2, generator=generator)
    weight = torch.rand(images, 4, 3, 2, generator=generator)
    fast, slow = (x.to(memory_format=order).requires_grad_() for _ in range(2))
    (3 * weighted_squared_error(fast, y, weight)).backward()
    (3 * (weight * (slow - y).square()).mean()).backward()

    torch.testing.assert_close(fast.grad, slow.grad)
    assert fast.grad.stride() == slow.detach().stride()


@pytest.mark.parametrize('rows_per_image', [1, 3])
@pytest.mark.parametrize(
    'order', [torch.contiguous_format, torch.channels_last]
)
def test_directions_add_the_squared_projections(
    rows_per_image, order, generator
):
    """All rows of an image are projected together."""
    x, y = torch.randn(2, 2 * rows_per_image, 4, 3, 2, generator=generator)
    directions = torch.randn(5, rows_per_image, 4, 3, 2, generator=generator)
    weight = torch.rand(1, 4, 3, 2, generator=generator)
    fast, slow = (x.to(memory_format=order).requires_grad_() for _ in range(2))

    found = weighted_squared_error(fast, y, weight, directions)
    error = (slow - y).unflatten(0, (2, rows_per_image))
    projections = torch.einsum('nfchw,rfchw->nr', error, directions)
    expected = (
        weight * error.square()
    ).mean() + projections.square().sum() / 2
    torch.testing.assert_close(found, expected)
    (3 * found).backward()
    (3 * expected).backward()
    torch.testing.assert_close(fast.grad, slow.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('with_directions', [False, True])
def test_low_precision_outputs_have_low_precision_gradients(
    with_directions, generator
):
    x, y = torch.randn(2, 6, 4, 3, 2, generator=generator)
    x, weight = x.bfloat16(), torch.rand(1, 4, 3, 2, generator=generator)
    directions = torch.randn(5, 1, 4, 3, 2, generator=generator)
    directions = directions if with_directions else None
    found = []
    for output in x.clone(), x.float():
        output.requires_grad_()
        error = weighted_squared_error(output, y, weight, directions)
        error.backward()
        assert error.dtype == torch.float32
        assert output.grad.dtype == output.dtype
        found.append((error, output.grad.float()))
    for low_precision, exact in zip(*found):
        assert (low_precision - exact).norm() < 0.02 * exact.norm()


@pytest.mark.parametrize('rank', [0, 2])
def test_the_backward_pass_keeps_neither_output_nor_target(rank, generator):
    """It needs only their difference."""
    x, y = torch.randn(2, 5, 4, 3, 2, generator=generator)
    weight, axes = torch.ones(1, 4, 3, 2), torch.ones(rank, 1, 4, 3, 2)
    saved = []

    def note(tensor):
        saved.append(tensor.untyped_storage().data_ptr())
        return tensor

    output = x.requires_grad_() * 1
    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        weighted_squared_error(output, y, weight, axes if rank else None)
    assert saved
    assert output.untyped_storage().data_ptr() not in saved
    assert y.untyped_storage().data_ptr() not in saved
