from __future__ import annotations

import pytest
import torch

from mmrazor_brecq.functional import (
    from_flat,
    from_rows,
    in_order_of,
    to_flat,
    to_rows,
)

LAYOUTS = dict(
    contiguous=lambda x: x,
    channels_last=lambda x: x.to(memory_format=torch.channels_last),
    transposed=lambda x: x.transpose(0, 3).contiguous().transpose(0, 3),
    matrix=lambda x: x.flatten(1).t(),
    sliced=lambda x: x[..., 1:-1],
    expanded=lambda x: x[:, :1].expand_as(x),
    scalar=lambda x: x[0, 0, 0, 0],
    empty=lambda x: x[:0],
)
each_layout = pytest.mark.parametrize('layout', LAYOUTS)


@pytest.fixture
def x(generator):
    return torch.randn(2, 3, 4, 5, generator=generator)


@each_layout
def test_to_flat_keeps_all_elements_and_is_undone(layout, x):
    x = LAYOUTS[layout](x)
    values = to_flat(x)

    assert values.shape == (x.numel(),)
    assert torch.equal(values.sort().values, x.reshape(-1).sort().values)
    assert torch.equal(from_flat(values, x), x)


@pytest.mark.parametrize(
    'layout',
    [layout for layout in LAYOUTS if layout not in ('scalar', 'empty')],
)
def test_to_rows_keeps_the_first_dimension_and_is_undone(layout, x):
    x = LAYOUTS[layout](x)
    values = to_rows(x)

    assert len(values) == len(x)
    for row, original in zip(values, x):
        assert torch.equal(row.sort().values, original.flatten().sort().values)
    assert torch.equal(from_rows(values, x), x)
    assert torch.equal(to_rows(x + 1, x), values + 1)


@pytest.mark.parametrize('layout', ['contiguous', 'channels_last', 'matrix'])
def test_memory_without_gaps_is_not_copied(layout, x):
    x = LAYOUTS[layout](x)
    values = to_flat(x)

    assert values.data_ptr() == x.data_ptr()
    assert from_flat(values, x).stride() == x.stride()


@each_layout
def test_two_tensors_can_follow_one_memory_order(layout, x):
    """Whatever the memory order of the second tensor is."""
    x = LAYOUTS[layout](x)
    for y in x + 100, (x + 100).clone(memory_format=torch.contiguous_format):
        assert torch.equal(to_flat(y, x), to_flat(x) + 100)


@pytest.mark.parametrize('layout', ['contiguous', 'channels_last', 'sliced'])
@pytest.mark.parametrize('images', [1, 2])
def test_a_memory_order_is_copied_once(layout, images, x):
    """Rows in that order are a view afterwards."""
    order = LAYOUTS[layout](x)
    y = torch.rand_like(order, memory_format=torch.contiguous_format)[:images]
    found = in_order_of(y, order)

    assert torch.equal(found, y)
    assert to_rows(found, order).data_ptr() == found.data_ptr()
    assert in_order_of(found, order).data_ptr() == found.data_ptr()
