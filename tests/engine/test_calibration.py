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
    """What a data set of images gives, without the data set."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return dict(inputs=self.images[i])


class Model(nn.Linear):
    """What is asked of a model when images are collected."""

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
def test_a_size_is_read(memory, size):
    assert memory_budget(memory, CPU) == size


def test_a_share_is_of_what_is_free():
    free = psutil.virtual_memory().available
    assert 0.3 * free < memory_budget(0.5, CPU) < 0.7 * free


def test_by_default_a_server_gives_no_more_than_a_laptop(monkeypatch):
    for free, budget in (2**31, 2**30), (2**40, 3 * 2**29):
        memory = SimpleNamespace(available=free)
        monkeypatch.setattr(psutil, 'virtual_memory', lambda m=memory: m)
        assert memory_budget('auto', CPU) == budget


@pytest.mark.parametrize(
    'memory', ['1 potato', '1', '', '-1GiB', 'GiB', 0, -0.5, 1.5, [1]]
)
def test_all_else_is_refused(memory):
    with pytest.raises(ValueError, match=r'calibration\.memory=.*GiB'):
        memory_budget(memory, CPU)


@pytest.mark.parametrize('count', [40, 48, 64])
@pytest.mark.parametrize(('side', 'part'), [(64, 32), (224, 6), (600, 1)])
def test_large_images_wait_in_small_parts(count, side, part):
    """All of them, in order, whatever the batches of the loader are."""
    images = torch.arange(64.0).view(-1, 1, 1, 1).expand(-1, 3, side, side)
    loader = DataLoader(Images(images), batch_size=32)
    rows = collect_images(Model(), loader, count, ImageSet(), Store())

    assert len(rows) == count and max(rows.sizes) == part
    found = torch.cat([batch[:, 0, 0, 0] for batch in rows.split()])
    assert torch.equal(found, torch.arange(float(count)))


@pytest.mark.parametrize(('count', 'warned'), [(2, True), (31, True), (32, 0)])
def test_few_images_are_told(count, warned, warnings_log):
    images = torch.zeros(count, 3, 4, 4)
    loader = DataLoader(Images(images), batch_size=8)
    rows = collect_images(Model(), loader, count, ImageSet(), Store())

    assert len(rows) == count
    assert len(warnings_log) == warned
    assert all('not even a batch of 32' in line for line in warnings_log)


@pytest.mark.parametrize('drop_last, expected', [(False, 40), (True, 32)])
def test_fewer_images_than_asked_for_are_all_taken(
    drop_last, expected, warnings_log
):
    images = torch.arange(40.0).view(-1, 1, 1, 1).expand(-1, 3, 4, 4)
    loader = DataLoader(Images(images), batch_size=16, drop_last=drop_last)
    rows = collect_images(Model(), loader, 1024, ImageSet(), Store())

    found = torch.cat([batch[:, 0, 0, 0] for batch in rows.split()])
    assert torch.equal(found, torch.arange(float(expected)))
    (line,) = warnings_log
    assert 'num_images=1024' in line and f'has {expected} images' in line


def test_too_few_of_them_are_refused():
    loader = DataLoader(Images(torch.zeros(1, 3, 4, 4)), batch_size=8)
    with pytest.raises(ValueError, match='num_images=1024.*has 1, expected 2'):
        collect_images(Model(), loader, 1024, ImageSet(), Store())


@pytest.mark.parametrize('count', [160, 161, 7])
def test_processes_take_each_image_once(monkeypatch, count):
    """Though their samplers repeat one where they would not be even."""
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
        rows = collect_images(Model(), loader, 1024, ImageSet(), Store())
        found += [float(x) for b in rows.split() for x in b[:, 0, 0, 0]]
    assert sorted(found) == list(range(count))


def test_a_pipeline_that_reads_no_images():
    """As where LoadImageFromFile is missing: there is nothing to pack."""
    loader = DataLoader([dict(data_samples=i) for i in range(4)], batch_size=2)
    with pytest.raises(ValueError, match="gives 'data_samples'.*LoadImage"):
        collect_images(Model(), loader, 4, ImageSet(), Store())


def test_an_image_out_of_line_is_named_by_its_file(generator):
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
    rows = collect_images(Stacked(), loader, 36, seen, Store())

    (found,) = seen.left_out
    assert found['image'] == 13 and found['name'] == 'folder/13.jpg'
    kept = torch.cat(list(rows.split()))
    assert torch.equal(kept[13], images[14])
    assert torch.equal(kept[12], images[12])
