from __future__ import annotations

import pytest
import torch

from mmrazor_brecq.reconstruction import CutMix, Flip, MixUp, Shift

KINDS = [Flip, Shift, CutMix, MixUp]


@pytest.fixture
def images(generator):
    return torch.randn(64, 3, 32, 24, generator=generator)


@pytest.mark.parametrize('kind', KINDS)
def test_some_images_change_and_all_keep_their_shape(kind, images, generator):
    before = images.clone()
    out = kind()(images, generator)

    assert out.shape == images.shape and torch.equal(images, before)
    same = (out == images).flatten(1).all(1)
    assert same.any() or kind is Shift
    assert not same.all()


@pytest.mark.parametrize('kind', KINDS)
def test_only_the_generator_is_random(kind, images):
    first, second, third = (
        kind()(images, torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    )

    assert torch.equal(first, second) and not torch.equal(first, third)


def test_a_flipped_image_is_its_mirror(images, generator):
    out = Flip(prob=1.0)(images, generator)

    assert torch.equal(out, images.flip(-1))


def test_a_shifted_image_is_a_part_of_the_padded_one(images, generator):
    """Each row of pixels comes from the image, moved by at most 2."""
    images = torch.arange(32.0).view(1, 1, 32, 1).expand(64, 1, 32, 24)
    out = Shift(share=1 / 16)(images, generator)

    moved = out - images
    assert (moved.abs() <= 2).all()
    inner = moved[:, 0, 2:-2, 0]
    assert (inner == inner[:, :1]).all() and len(inner.unique()) == 5


def test_a_cut_image_has_one_rectangle_of_another(generator):
    numbers = torch.arange(64.0).view(64, 1, 1, 1).expand(64, 1, 32, 24)
    out = CutMix(prob=1.0)(numbers, generator)

    changed = 0
    for i, image in enumerate(out[:, 0]):
        foreign = image != i
        assert len(image.unique()) <= 2
        rows, columns = foreign.any(1), foreign.any(0)
        assert torch.equal(foreign, rows[:, None] & columns)
        changed += foreign.any()
        assert 0.05 < foreign.float().mean() < 0.6 or not foreign.any()
    assert changed > 55


def test_a_blended_image_has_the_same_weight_of_another_everywhere(generator):
    """Each image has a channel of its own, which shows its weight."""
    ones = torch.eye(64).view(64, 64, 1, 1).expand(64, 64, 4, 4)
    out = MixUp(prob=1.0, most=0.3)(ones, generator)

    assert torch.equal(out, out[..., :1, :1].expand_as(out))
    weights = out[..., 0, 0]
    torch.testing.assert_close(weights.sum(1), torch.ones(64))
    assert (weights.diagonal() >= 0.7).all()
    others = weights - weights.diagonal().diag()
    assert ((others > 0).sum(1) <= 1).all() and (others > 0).sum() > 55
