"""Images with far larger values than all others are left out."""

from __future__ import annotations

import pytest
import torch

import mmrazor_brecq
from mmrazor_brecq.activations import CachedBatches
from mmrazor_brecq.engine.outliers import leave_out

MEAN, STD = 0.45, 0.225


def photographs(count=256, seed=0):
    """Return smooth normalized images of many contrasts."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.rand(count, 3, 4, 4, generator=generator)
    big = torch.nn.functional.interpolate(small, size=(12, 12), mode='bicubic')
    contrast = torch.rand(count, 1, 1, 1, generator=generator) + 0.1
    return ((big * contrast).clamp(0, 1) - MEAN) / STD


def digits(count=256, content=0.2):
    """Return black images, a few of which have a white stroke."""
    images = torch.full((count, 1, 12, 12), -0.42)
    with_content = int(count * content)
    images[:with_content, :, 3:9, 5:7] = 2.82
    return images


def cache(images):
    batches = images.clone().split(50)
    return CachedBatches(batches, [len(batch) for batch in batches])


def all_of(cached):
    return torch.cat(list(cached.split()))


def unnormalized(image):
    return (image * STD + MEAN) * 255


def hot_pixel(image):
    image = image.clone()
    image[0, 3, 3] = 1e4
    return image


BAD = dict(
    unnormalized=unnormalized,
    huge=lambda image: image * 255,
    negative=lambda image: image * -255,
    noise=lambda image: torch.rand_like(image) * 255,
    white=lambda image: torch.full_like(image, 255.0),
    hot_pixel=hot_pixel,
)


@pytest.mark.parametrize('count', [16, 64, 256])
@pytest.mark.parametrize('kind', BAD)
def test_a_bad_image_is_named_and_left_out(kind, count, warnings_log):
    images = photographs(count)
    dirty = images.clone()
    dirty[5] = BAD[kind](images[5])
    cached = cache(dirty)
    (found,) = leave_out(cached, [f'{i}.png' for i in range(count)])

    assert found['image'] == 5 and found['name'] == '5.png'
    assert found['times'] > 20
    images[5] = images[6]
    assert torch.equal(all_of(cached), images)
    (line,) = warnings_log
    assert 'image 5 (5.png)' in line and f'{found["times"]:.3g} times' in line


@pytest.mark.parametrize('indices', [(0, 1, 2), (5, 100, 255), (254, 255)])
def test_several_outliers_of_different_kinds_are_left_out(indices):
    images = photographs()
    dirty = images.clone()
    for i, kind in zip(indices, (unnormalized, hot_pixel, BAD['noise'])):
        dirty[i] = kind(images[i])
    cached = cache(dirty)
    assert [x['image'] for x in leave_out(cached)] == list(indices)
    rest = [i for i in range(256) if i not in indices]
    assert torch.equal(all_of(cached)[rest], images[rest])
    assert all_of(cached).abs().max() == images[rest].abs().max()


def with_one(image, count=256):
    images = photographs(count)
    images[5] = image(images[5])
    return images


GOOD = dict(
    photographs=photographs(),
    bytes=(photographs() * STD + MEAN) * 255,
    noise=torch.randn(256, 3, 12, 12),
    black=with_one(lambda x: torch.full_like(x, -MEAN / STD)),
    white=with_one(lambda x: torch.full_like(x, (1 - MEAN) / STD)),
    empty=with_one(torch.zeros_like),
    noisy=with_one(torch.randn_like),
    strong=with_one(lambda x: 2 * x),
    digits=digits(),
    few_digits=digits(content=0.01),
    mostly_nothing=torch.cat(
        [torch.zeros(250, 1, 4, 4), torch.rand(6, 1, 4, 4)]
    ),
    nothing=torch.zeros(64, 3, 4, 4),
    half_of_each=torch.cat([photographs(32), 100 * photographs(32)]),
    heavy_tails=torch.randn(256, 3, 6, 6)
    * torch.randn(256, 1, 1, 1).mul(1.5).exp(),
    vectors=torch.randn(64, 7),
    two=torch.tensor([1.0, 1000.0]).view(2, 1, 1, 1) * torch.ones(2, 3, 2, 2),
    tokens=torch.randint(5000, (32, 8)),
)


@pytest.mark.parametrize('kind', GOOD)
def test_images_that_only_vary_are_kept(kind, warnings_log):
    cached = cache(GOOD[kind])
    assert leave_out(cached) == [] and not warnings_log
    assert torch.equal(all_of(cached), GOOD[kind])


def test_the_report_of_the_api_has_the_outliers(toy, generator):
    images = torch.randn(64, 3, 8, 8, generator=generator)
    dirty = images.clone()
    dirty[5] = 255 * torch.rand(3, 8, 8, generator=generator)
    given = dirty.clone()
    images[5] = images[6]
    brief = dict(type='BlockReconstructor', iterations=2)
    models = []
    for some in images, dirty:
        model, report = mmrazor_brecq.quantize(
            toy('residual'), some, reconstructor=brief
        )
        models.append(model.state_dict())

    assert [x['image'] for x in report['left_out']] == [5]
    assert torch.equal(dirty, given)
    assert all(torch.equal(models[0][k], models[1][k]) for k in models[0])


@pytest.mark.parametrize('count', [3, 12])
def test_values_too_large_to_compute_with_are_refused(count, generator):
    """Also with too few images for outliers, or if all are too large."""
    images = torch.randn(count, 3, 4, 4, generator=generator)
    images[1 if count < 4 else slice(None), 0, 0, 0] = 1e30
    cached = CachedBatches([images[:1], images[1:]], [1, count - 1])
    with pytest.raises(ValueError, match=r'\d contains 1e\+30, expected'):
        leave_out(cached)
