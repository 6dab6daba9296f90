"""Calibration images come as a tensor, a loader, or any batches."""

from __future__ import annotations

from itertools import count

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import mmrazor_brecq
from mmrazor_brecq.engine.batches import gather_images

NEAREST = dict(type='NearestRounding', batch_size=8)


def batches_of(images):
    """Every form in which images come, with labels of any kind."""
    labels = torch.arange(len(images))
    parts = images.split(10)
    return {
        'a tensor': images,
        'a list of tensors': list(parts),
        'a generator': (part for part in parts),
        'a loader with labels': DataLoader(
            TensorDataset(images, labels), batch_size=10
        ),
        'soft labels': DataLoader(
            TensorDataset(images, torch.rand(len(images), 5)), batch_size=10
        ),
        'labels first': [(torch.arange(len(p)), p) for p in parts],
        'dicts': [
            dict(label=torch.arange(len(p)), image=p, name=['a'] * len(p))
            for p in parts
        ],
        'targets first': [(torch.rand(len(p)), p) for p in parts],
        'nested': [[dict(x=(p,)), None] for p in parts],
        'images that carry gradients': [
            p + torch.zeros(1, requires_grad=True) for p in parts
        ],
    }


@pytest.mark.parametrize('form', batches_of(torch.zeros(48, 3, 8, 8)))
def test_every_form_gives_the_same_images(toy, images, form):
    found = gather_images(toy('residual'), batches_of(images)[form], 1024)
    assert torch.equal(found, images) and not found.requires_grad


def test_a_loader_gives_the_same_network(toy, images):
    def quantized(source, **more):
        model, _ = mmrazor_brecq.quantize(
            toy('residual'), source, reconstructor=NEAREST, **more
        )
        return model(images)

    expected = quantized(images[:32])
    found = quantized(batches_of(images)['dicts'], num_images=32)
    assert torch.equal(found, expected)


def test_no_more_batches_are_asked_for_than_needed(toy):
    asked = []

    def endless():
        for i in count():
            asked.append(i)
            yield torch.full((4, 3, 8, 8), float(i))

    found = gather_images(toy('residual'), endless(), 10)
    assert len(found) == 10 and asked == [0, 1, 2]


@pytest.mark.parametrize(
    'source, words',
    [
        ('images', 'or a data loader or other batches of them'),
        (dict(a=torch.zeros(4, 3, 8, 8)), 'and it is a dict'),
        (3, 'and it is a int'),
        ([], 'gives no batch'),
        (iter(()), 'give the data loader itself'),
        ([torch.zeros(4, 3, 8, 8, dtype=torch.uint8)], 'Batch 0 of `images`'),
        ([['a.png']], 'without a floating-point tensor'),
        (
            [torch.zeros(4, 3, 8, 8), torch.zeros(4, 3, 9, 9)],
            r'Batch 1 of `images` has images of \(3, 9, 9\)',
        ),
        ([torch.zeros(3, 8, 8)] * 4, 'which is one image'),
        ([torch.zeros(4)], 'without a floating-point tensor'),
    ],
)
def test_what_gives_no_images_is_refused(toy, source, words):
    with pytest.raises(ValueError, match=words):
        mmrazor_brecq.quantize(toy('residual'), source)
