"""Calibration images are collected in order, checked and cached."""

from __future__ import annotations

from types import SimpleNamespace

import psutil
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from mmrazor_brecq.activations import Store
from mmrazor_brecq.engine.calibration import collect_images
from mmrazor_brecq.engine.image_set import ImageSet
from mmrazor_brecq.engine.loaders import CALIBRATION, TEST, build_dataloader
from mmrazor_brecq.engine.memory import memory_budget
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

    architecture = nn.Identity()
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
    assert '--num-images 1024' in line and '--calibration' in line
    assert f'has {expected} images: all of them are used' in line


def test_fewer_images_than_a_batch_are_told_once(warnings_log):
    loader = DataLoader(Images(torch.zeros(9, 3, 4, 4)), batch_size=8)
    collect_images(Model(), loader, 1024, ImageSet(), Store())
    (line,) = warnings_log
    assert '--num-images 1024' in line and 'not even a batch of 32' in line


class Padding(Model):
    """Its preprocessor pads all images of a batch to the largest."""

    def data_preprocessor(self, data, training):
        height, width = (
            max(x.shape[i] for x in data['inputs']) for i in (1, 2)
        )
        padded = [
            nn.functional.pad(
                x, (0, width - x.shape[2], 0, height - x.shape[1])
            )
            for x in data['inputs']
        ]
        return dict(inputs=torch.stack(padded))


@pytest.mark.parametrize('odd', [1, 9])
@pytest.mark.parametrize('size', [(3, 4, 6), (3, 6, 4), (3, 2, 2)])
def test_images_of_mixed_sizes_are_refused_before_they_are_padded(odd, size):
    """In one batch as well as in different ones."""
    images = [torch.zeros(3, 4, 4) for _ in range(12)]
    images[odd] = torch.zeros(size)
    samples = [
        dict(inputs=x, data_samples=SimpleNamespace(img_path=f'{i}.jpg'))
        for i, x in enumerate(images)
    ]
    loader = DataLoader(
        samples,
        batch_size=6,
        collate_fn=lambda some: {k: [x[k] for x in some] for k in some[0]},
    )
    with pytest.raises(ValueError) as info:
        collect_images(Padding(), loader, 12, ImageSet(), Store())
    words = str(info.value)
    assert "3 x 4 x 4 ('0.jpg')" in words
    assert f"{' x '.join(map(str, size))} ('{odd}.jpg')" in words
    assert '`Resize(' in words and '`Pad(size=' in words


def test_of_many_sizes_some_are_named():
    seen = ImageSet()
    with pytest.raises(ValueError, match='3 x 4 x 2 and 17 more'):
        seen.add(dict(inputs=[torch.zeros(3, 4, i) for i in range(20)]))


def test_images_of_mixed_sizes_in_two_processes_are_refused(monkeypatch):
    seen, other = ImageSet(), ImageSet()
    seen.add(dict(inputs=torch.zeros(2, 3, 4, 4)))
    other.add(dict(inputs=torch.zeros(2, 3, 4, 5)))
    monkeypatch.setattr(
        'mmrazor_brecq.engine.image_set.all_gather_object',
        lambda x: [x, other.sizes if isinstance(x, dict) else other.seen],
    )
    with pytest.raises(ValueError, match='3 x 4 x 4, 3 x 4 x 5'):
        seen.gather()


@pytest.mark.parametrize(
    'tests, warned',
    [
        ([(3, 4, 4)] * 2, False),
        ([(3, 4, 8), (3, 4, 4)], False),
        ([(3, 8, 8)] * 2, True),
        ([(1, 4, 4)], True),
    ],
)
def test_test_images_of_another_size_give_a_warning(
    tests, warned, warnings_log
):
    seen = ImageSet()
    seen.add(dict(inputs=torch.zeros(2, 3, 4, 4)))
    seen.warn_of_size(dict(inputs=[torch.zeros(size) for size in tests]))
    assert len(warnings_log) == warned
    for line in warnings_log:
        assert '3 x 4 x 4' in line and ' x '.join(map(str, tests[0])) in line


def test_a_single_image_is_refused():
    loader = DataLoader(Images(torch.zeros(1, 3, 4, 4)), batch_size=8)
    with pytest.raises(
        ValueError, match='--num-images 1024.*has 1, expected 2'
    ):
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


def without(kind):
    """Return the pipeline of a folder of images without a step."""
    steps = [
        dict(type='LoadImageFromFile'),
        dict(type='mmcls.ResizeEdge', scale=8),
        dict(type='mmcls.PackClsInputs'),
    ]
    return [step for step in steps if kind not in step['type']]


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('lacking', ['LoadImage', 'Pack'])
@pytest.mark.parametrize('key', [TEST, CALIBRATION])
def test_a_pipeline_that_lacks_a_step_is_named_with_the_cure(
    tmp_path, lacking, workers, key
):
    """Wherever images are read, in this process or in workers."""
    pytest.importorskip('mmcls')
    from mmengine.registry import init_default_scope

    init_default_scope('mmcls')
    for i in range(4):
        Image.new('RGB', (9, 9)).save(tmp_path / f'{i}.png')
    loader = build_dataloader(
        dict(
            batch_size=2,
            num_workers=workers,
            sampler=dict(type='DefaultSampler', shuffle=False),
            dataset=dict(
                type='mmrazor_brecq.UnlabeledImages',
                data_root=str(tmp_path),
                pipeline=without(lacking),
            ),
        ),
        key=key,
    )
    with pytest.raises(ValueError) as info:
        next(iter(loader))
    words = str(info.value)
    assert f'`{key}.dataset`' in words and '\n' not in words
    assert 'LoadImageFromFile' in words and 'PackClsInputs' in words


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
