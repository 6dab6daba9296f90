"""Calibration images are collected in order, checked and cached."""

from __future__ import annotations

from types import SimpleNamespace

import psutil
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from mmrazor_brecq.activations import Store
from mmrazor_brecq.engine.calibration import (
    ImageSet,
    collect_images,
    memory_budget,
)
from mmrazor_brecq.reconstruction import BlockReconstructor

CPU = torch.device('cpu')


class Images(Dataset):
    """Data set of the images of a tensor."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return dict(inputs=self.images[i])


class Model(nn.Linear):
    """Model with all that the collection of images needs."""

    reconstructor = BlockReconstructor(batch_size=32)

    def __init__(self):
        super().__init__(1, 1)

    def data_preprocessor(self, data, training):
        return data


@pytest.mark.parametrize(
    ('memory', 'size'),
    [
        ('1GiB', 2**30),
        ('1.5 GiB', 3 * 2**29),
        ('500MB', 500_000_000),
        ('2kb', 2000),
        ('64 B', 64),
        (None, None),
    ],
)
def test_a_size_is_parsed(memory, size):
    assert memory_budget(memory, CPU) == size


def test_a_fraction_is_of_the_free_memory():
    free = psutil.virtual_memory().available
    assert 0.3 * free < memory_budget(0.5, CPU) < 0.7 * free


def test_the_default_budget_has_an_upper_limit(monkeypatch):
    for free, budget in (2**31, 2**30), (2**40, 3 * 2**29):
        memory = SimpleNamespace(available=free)
        monkeypatch.setattr(psutil, 'virtual_memory', lambda m=memory: m)
        assert memory_budget('auto', CPU) == budget


@pytest.mark.parametrize(
    'memory', ['1 potato', '1', '', '-1GiB', 'GiB', 0, -0.5, 1.5, [1]]
)
def test_an_invalid_budget_is_refused(memory):
    with pytest.raises(ValueError, match=r'calibration\.memory=.*GiB'):
        memory_budget(memory, CPU)


@pytest.mark.parametrize('count', [40, 48, 64])
@pytest.mark.parametrize(('side', 'part'), [(64, 32), (224, 6), (600, 1)])
def test_large_images_are_cached_in_small_parts(count, side, part):
    """All images are cached, in order, for any batches of the loader."""
    images = torch.arange(64.0).view(-1, 1, 1, 1).expand(-1, 3, side, side)
    loader = DataLoader(Images(images), batch_size=32)
    cached = collect_images(Model(), loader, count, ImageSet(), Store())

    assert len(cached) == count and max(cached.sizes) == part
    found = torch.cat([batch[:, 0, 0, 0] for batch in cached.split()])
    assert torch.equal(found, torch.arange(float(count)))


@pytest.mark.parametrize(('count', 'warned'), [(2, True), (31, True), (32, 0)])
def test_few_images_give_a_warning(count, warned, warnings_log):
    images = torch.zeros(count, 3, 4, 4)
    loader = DataLoader(Images(images), batch_size=8)
    cached = collect_images(Model(), loader, count, ImageSet(), Store())

    assert len(cached) == count
    assert len(warnings_log) == warned
    assert all('not even a batch of 32' in line for line in warnings_log)


@pytest.mark.parametrize('drop_last, expected', [(False, 40), (True, 32)])
def test_if_there_are_fewer_images_all_are_used(
    drop_last, expected, warnings_log
):
    images = torch.arange(40.0).view(-1, 1, 1, 1).expand(-1, 3, 4, 4)
    loader = DataLoader(Images(images), batch_size=16, drop_last=drop_last)
    cached = collect_images(Model(), loader, 1024, ImageSet(), Store())

    found = torch.cat([batch[:, 0, 0, 0] for batch in cached.split()])
    assert torch.equal(found, torch.arange(float(expected)))
    (line,) = warnings_log
    assert 'num_images=1024' in line and f'has {expected} images' in line


def test_a_single_image_is_refused():
    loader = DataLoader(Images(torch.zeros(1, 3, 4, 4)), batch_size=8)
    with pytest.raises(ValueError, match='num_images=1024.*has 1, expected 2'):
        collect_images(Model(), loader, 1024, ImageSet(), Store())


@pytest.mark.parametrize('count', [160, 161, 7])
def test_processes_use_each_image_once(monkeypatch, count):
    """Also if their samplers repeat an image to have equally many."""
    found = []
    for rank in range(2):
        for name in ('runtime.distributed', 'engine.calibration'):
            monkeypatch.setattr(
                f'mmrazor_brecq.{name}.get_world_size', lambda: 2
            )
        monkeypatch.setattr(
            'mmrazor_brecq.runtime.distributed.get_rank',
            lambda rank=rank: rank,
        )
        monkeypatch.setattr(
            'mmrazor_brecq.engine.calibration.all_gather_object',
            lambda x: [x, x],
        )
        images = torch.arange(float(count)).view(-1, 1, 1, 1)
        images = images.expand(-1, 3, 4, 4)
        sampler = DistributedSampler(Images(images), 2, rank, shuffle=False)
        loader = DataLoader(Images(images), batch_size=16, sampler=sampler)
        cached = collect_images(Model(), loader, 1024, ImageSet(), Store())
        found += [float(x) for b in cached.split() for x in b[:, 0, 0, 0]]
    assert sorted(found) == list(range(count))


def test_a_pipeline_without_images_is_refused():
    """If LoadImageFromFile is missing, there is nothing to pack."""
    loader = DataLoader([dict(data_samples=i) for i in range(4)], batch_size=2)
    with pytest.raises(ValueError, match="gives 'data_samples'.*LoadImage"):
        collect_images(Model(), loader, 4, ImageSet(), Store())


def test_an_outlier_is_named_by_its_file(generator):
    class Sample:
        def __init__(self, i):
            self.img_path = f'folder/{i}.jpg'

    images = torch.randn(40, 3, 4, 4, generator=generator)
    images[13] *= 255
    data = [
        dict(inputs=x, data_samples=Sample(i)) for i, x in enumerate(images)
    ]

    def collate(some):
        return {key: [x[key] for x in some] for key in some[0]}

    class Stacked(Model):
        def data_preprocessor(self, data, training):
            return dict(inputs=torch.stack(data['inputs']))

    seen = ImageSet()
    loader = DataLoader(data, batch_size=16, collate_fn=collate)
    cached = collect_images(Stacked(), loader, 36, seen, Store())

    (found,) = seen.left_out
    assert found['image'] == 13 and found['name'] == 'folder/13.jpg'
    kept = torch.cat(list(cached.split()))
    assert torch.equal(kept[13], images[14])
    assert torch.equal(kept[12], images[12])
