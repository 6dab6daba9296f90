from __future__ import annotations

import pytest
import torch
from torch.utils._pytree import tree_flatten

from mmrazor_brecq.activations import CachedBatches, images_per_pass
from mmrazor_brecq.functional import tensors

SIZES = [4, 3, 5]


@pytest.fixture
def batches(generator):
    """Arguments of a unit: images, windows of images, and constants."""
    table = torch.randn(6, 2, generator=generator)

    def batch(n):
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

    return [batch(n) for n in SIZES]


def same(a, b):
    """Return whether two structures have one form and equal values."""
    (xs, spec), (ys, other) = tree_flatten(a), tree_flatten(b)
    return spec == other and all(
        torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y
        for x, y in zip(xs, ys)
    )


def test_the_tensors_of_a_structure_are_in_order(batches):
    found = tensors(batches[0])

    assert [tuple(x.shape) for x in found] == [
        (4, 3, 2),
        (16, 5),
        (4,),
        (6, 2),
        (),
    ]


def test_batches_are_returned_as_they_were_given(batches):
    cached = CachedBatches(batches, SIZES)

    assert len(cached) == 12
    for found, batch in zip(cached.split(), batches):
        assert same(found, batch)


def test_an_image_is_taken_with_all_of_its_rows(batches):
    cached = CachedBatches(batches, SIZES)
    (x, mode, none), rest = cached.take(torch.tensor([5, 0, 5]))
    (first, _, _), others = batches[1]

    assert torch.equal(x[0], first[1])
    assert torch.equal(x[1], batches[0][0][0][0])
    assert torch.equal(x[2], x[0])
    assert mode == 'mode' and none is None
    assert torch.equal(rest['windows'][0][:4], others['windows'][0][4:8])
    assert torch.equal(
        rest['labels'],
        torch.stack(
            [
                others['labels'][1],
                batches[0][1]['labels'][0],
                others['labels'][1],
            ]
        ),
    )


def test_constants_are_the_same_for_all_images(batches):
    _, rest = CachedBatches(batches, SIZES).take(torch.arange(2))

    assert torch.equal(rest['table'], batches[0][1]['table'])
    assert rest['size'] == (7, 7) and rest['temperature'] == 3


@pytest.mark.parametrize('size', [1, 5, 12, 20])
def test_images_can_be_split_into_other_batches(size, batches):
    cached = CachedBatches(batches, SIZES)
    again = [cached.take(i) for i in torch.arange(len(cached)).split(size)]
    sizes = [len(batch[0][0]) for batch in again]

    assert sum(sizes) == 12 and set(sizes[:-1]) <= {size}
    back = CachedBatches(again, sizes)
    everything = torch.arange(12)
    assert same(back.take(everything), cached.take(everything))


def test_taken_tensors_are_copies(batches):
    """A unit may write to its input without changing the cache."""
    cached = CachedBatches(batches, SIZES)
    before = batches[0][0][0].clone()
    for taken in cached.take(torch.arange(4)), *cached.split():
        for x in tensors(taken[0]):
            x.zero_()

    assert torch.equal(cached.take(torch.arange(4))[0][0], before)
    assert torch.equal(batches[0][0][0], before)


def test_a_table_as_long_as_the_batches_is_still_a_constant(generator):
    """Such as an attention mask of as many windows, equal in all batches."""
    mask = torch.randn(8, 2, generator=generator)
    batches = [
        (torch.randn(4, 3, generator=generator), mask) for _ in range(2)
    ]
    cached = CachedBatches(batches, [4, 4])

    _, taken = cached.take(torch.tensor([3, 1]))
    assert torch.equal(taken, mask)


def test_a_structure_may_be_a_single_tensor(generator):
    batches = [torch.randn(n, 2, generator=generator) for n in SIZES]
    cached = CachedBatches(batches, SIZES)

    assert torch.equal(cached.take(torch.arange(12)), torch.cat(batches))


def test_images_of_several_sizes_are_refused_with_the_cure():
    batches = [torch.zeros(4, 3, 8, 8), torch.zeros(3, 3, 6, 8)]
    with pytest.raises(ValueError, match=r'\(3, 6, 8\).*pipeline'):
        CachedBatches(batches, [4, 3])


def test_an_image_has_the_elements_of_all_of_its_rows(batches):
    """Windows count, constants do not."""
    assert CachedBatches(batches, SIZES).elements == 3 * 2 + 4 * 5 + 1


@pytest.mark.parametrize(
    ('elements', 'count'), [(1, 32), (100, 10), (600, 1), (10**6, 1), (0, 32)]
)
def test_images_per_pass_have_at_most_the_max_elements(elements, count):
    assert images_per_pass(elements, max_images=32, max_elements=1000) == count
