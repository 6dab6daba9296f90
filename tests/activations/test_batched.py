from __future__ import annotations

import pytest
import torch
from torch.utils._pytree import tree_flatten

from mmrazor_brecq.activations import CachedBatches, images_per_pass
from mmrazor_brecq.functional import tensors

SIZES = [4, 3, 5]


@pytest.fixture
def parts(generator):
    """Arguments of a unit: images, windows of images, and constants."""
    table = torch.randn(6, 2, generator=generator)

    def part(n):
        return (
            (torch.randn(n, 3, 2, generator=generator), 'mode', None),
            dict(
                windows=[torch.randn(n * 4, 5, generator=generator)],
                labels=torch.randint(9, (n,), generator=generator),
                table=table,
                size=(7, 7),
                temperature=torch.tensor(3.0),
            ),
        )

    return [part(n) for n in SIZES]


def same(a, b):
    """Equal in form and in every value."""
    (xs, spec), (ys, other) = tree_flatten(a), tree_flatten(b)
    return spec == other and all(
        torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y
        for x, y in zip(xs, ys)
    )


def test_the_tensors_of_a_structure_come_in_order(parts):
    found = tensors(parts[0])

    assert [tuple(x.shape) for x in found] == [
        (4, 3, 2),
        (16, 5),
        (4,),
        (6, 2),
        (),
    ]


def test_batches_come_out_as_they_went_in(parts):
    rows = CachedBatches(parts, SIZES)

    assert len(rows) == 12
    for found, part in zip(rows.split(), parts):
        assert same(found, part)


def test_an_image_is_taken_with_all_that_belongs_to_it(parts):
    rows = CachedBatches(parts, SIZES)
    (x, mode, none), rest = rows.take(torch.tensor([5, 0, 5]))
    (first, _, _), others = parts[1]

    assert torch.equal(x[0], first[1])
    assert torch.equal(x[1], parts[0][0][0][0])
    assert torch.equal(x[2], x[0])
    assert mode == 'mode' and none is None
    assert torch.equal(rest['windows'][0][:4], others['windows'][0][4:8])
    assert torch.equal(
        rest['labels'],
        torch.stack(
            [
                others['labels'][1],
                parts[0][1]['labels'][0],
                others['labels'][1],
            ]
        ),
    )


def test_constants_are_the_same_for_all_images(parts):
    _, rest = CachedBatches(parts, SIZES).take(torch.arange(2))

    assert torch.equal(rest['table'], parts[0][1]['table'])
    assert rest['size'] == (7, 7) and rest['temperature'] == 3


@pytest.mark.parametrize('size', [1, 5, 12, 20])
def test_images_may_be_cut_anew_into_batches(size, parts):
    rows = CachedBatches(parts, SIZES)
    again = [rows.take(i) for i in torch.arange(len(rows)).split(size)]
    sizes = [len(part[0][0]) for part in again]

    assert sum(sizes) == 12 and set(sizes[:-1]) <= {size}
    back = CachedBatches(again, sizes)
    everything = torch.arange(12)
    assert same(back.take(everything), rows.take(everything))


def test_what_is_taken_is_a_copy(parts):
    """A unit may write to its input; the cache stays what it was."""
    rows = CachedBatches(parts, SIZES)
    before = parts[0][0][0].clone()
    for taken in rows.take(torch.arange(4)), *rows.split():
        for x in tensors(taken[0]):
            x.zero_()

    assert torch.equal(rows.take(torch.arange(4))[0][0], before)
    assert torch.equal(parts[0][0][0], before)


def test_a_table_as_long_as_the_batches_is_still_a_constant(generator):
    """Equal in all batches: an attention mask, say, of as many windows."""
    mask = torch.randn(8, 2, generator=generator)
    parts = [(torch.randn(4, 3, generator=generator), mask) for _ in range(2)]
    rows = CachedBatches(parts, [4, 4])

    _, taken = rows.take(torch.tensor([3, 1]))
    assert torch.equal(taken, mask)


def test_a_single_tensor_is_a_structure_too(generator):
    parts = [torch.randn(n, 2, generator=generator) for n in SIZES]
    rows = CachedBatches(parts, SIZES)

    assert torch.equal(rows.take(torch.arange(12)), torch.cat(parts))


def test_images_of_several_sizes_are_refused_with_the_cure():
    parts = [torch.zeros(4, 3, 8, 8), torch.zeros(3, 3, 6, 8)]
    with pytest.raises(ValueError, match=r'\(3, 6, 8\).*pipeline'):
        CachedBatches(parts, [4, 3])


def test_an_image_has_the_numbers_of_all_that_is_its_own(parts):
    """Windows count, constants do not."""
    assert CachedBatches(parts, SIZES).elements == 3 * 2 + 4 * 5 + 1


@pytest.mark.parametrize(
    ('elements', 'count'), [(1, 32), (100, 10), (600, 1), (10**6, 1), (0, 32)]
)
def test_as_many_images_run_together_as_there_is_room_for(elements, count):
    assert images_per_pass(elements, max_images=32, max_elements=1000) == count
