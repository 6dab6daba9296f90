"""Networks that need a data sample of each image are given the right one."""

from __future__ import annotations

import pytest
import torch
from mmengine.model import BaseModel, ImgDataPreprocessor
from mmengine.structures import BaseDataElement, InstanceData
from torch import nn
from torch.utils.data import DataLoader

import mmrazor_brecq
from mmrazor_brecq.activations import (
    CachedBatches,
    CachedSamples,
    Store,
    with_samples,
)
from mmrazor_brecq.algorithms import BRECQ
from mmrazor_brecq.analysis import SingleLayers
from mmrazor_brecq.engine.calibration import collect_images
from mmrazor_brecq.engine.deploy import Request, write
from mmrazor_brecq.engine.image_set import ImageSet
from mmrazor_brecq.graph import Samples, inputs_for, run_float
from mmrazor_brecq.reconstruction import NearestRounding

COUNT = 11


class Paired(BaseModel):
    """Refuses an image whose data sample is that of another image."""

    def __init__(self, needs=True):
        super().__init__(data_preprocessor=ImgDataPreprocessor())
        torch.manual_seed(0)
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 1)
        )
        self.head = nn.Linear(6, 4)
        self.needs = needs

    def forward(self, inputs, data_samples=None, mode='tensor'):
        if self.needs:
            given = [sample.number for sample in data_samples]
            found = inputs[:, 2, 0, 0].round().tolist()
            assert given == found, (given, found)
            assert all('gt_label' not in sample for sample in data_samples)
            assert all(
                len(sample.gt_instances) == 0 for sample in data_samples
            )
        else:
            assert data_samples is None
        out = self.backbone(inputs).mean((2, 3))
        if self.needs:
            factors = [sample.factor for sample in data_samples]
            out = out * out.new_tensor(factors)[:, None]
        return self.head(out)


def items():
    generator = torch.Generator().manual_seed(1)
    for i in range(COUNT):
        image = torch.randn(3, 6, 6, generator=generator)
        image[2] = i
        sample = BaseDataElement(
            metainfo=dict(number=i, factor=1 + i % 3),
            gt_label=torch.ones(1),
            gt_instances=InstanceData(labels=torch.arange(i)),
        )
        yield dict(inputs=image, data_samples=sample)


def calibrated(model, batch_size=4):
    """The images as the engine collects them."""
    return collect_images(
        model,
        DataLoader(
            list(items()),
            batch_size=batch_size,
            collate_fn=lambda found: {
                key: [item[key] for item in found] for key in found[0]
            },
        ),
        COUNT,
        ImageSet(),
        Store(),
    )


def brecq(network, **schedule):
    return BRECQ(
        network,
        reconstructor=dict(
            type='BlockReconstructor',
            iterations=3,
            batch_size=4,
            fit_images=8,
            **schedule,
        ),
    )


@pytest.mark.parametrize('objective', ['FisherLowRank', 'FisherDiag'])
def test_each_image_keeps_its_sample_from_end_to_end(objective):
    refiner = dict(
        type='NetworkRefiner', iterations=2, batch_size=4, augment=[]
    )
    model = brecq(
        Paired(), objective=dict(type=objective), refiner=refiner
    ).eval()
    images = calibrated(model)
    assert isinstance(images, CachedSamples) and len(images) == COUNT
    with pytest.raises(AssertionError):  # The network does refuse others.
        first = images.batch(0)
        run_float(model.architecture, Samples(first.images, first.data[::-1]))
    teacher = model.prepare(images.batch(0)[:1])
    reports = list(model.reconstruct(teacher, images))
    assert [r.name for r in reports][:3] == [u.name for u in model.units]
    assert model.takes_samples
    # The targets of the last unit are the outputs of the float network.
    with torch.no_grad():
        for batch in images.split():
            found = run_float(model.architecture, batch)
            goal = run_float(teacher, batch)
            assert (found - goal).abs().max() < 0.5 * goal.abs().max()
    layers = SingleLayers(model, teacher, images, 2)
    assert all(layers(name)['alone'] > 0 for name in layers.names)


def test_parts_and_choices_keep_their_samples():
    images = calibrated(brecq(Paired()))
    index = torch.tensor([7, 0, 10])
    assert [s.number for s in images.take(index).data] == [7, 0, 10]
    few = images.first(5)
    for cached in (images, few):
        whole = [x for batch in cached.split() for x in batch.split(2)]
        numbers = [s.number for part in whole for s in part.data]
        assert numbers == list(range(len(cached)))
        seen = torch.cat([part.images[:, 2, 0, 0] for part in whole])
        assert seen.tolist() == numbers
    assert len(few) == 5
    # One batch is smaller, so that what grows with a batch shows.
    assert images.sizes == [3, 4, 4]


def test_a_network_of_images_alone_gets_them_alone():
    model = brecq(Paired(needs=False))
    images = calibrated(model)
    assert type(images) is CachedBatches
    assert isinstance(images.batch(0), torch.Tensor)
    assert not model.takes_samples


class BySize(BaseModel):
    """Needs the size of each image."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, 3)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        height, width = data_samples[0].img_shape
        return self.head(self.conv(inputs).sum((2, 3)) / (height * width))


class Indifferent(BySize):
    """Takes data samples and does without them."""

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return self.head(self.conv(inputs).sum((2, 3)))


def test_samples_do_not_help_a_network_that_fails_with_them_just_the_same():
    images = torch.zeros(2, 5, 6, 6)  # It has five channels.
    assert inputs_for(Indifferent(), images) is images
    # The other network's failure is told as it is with data samples.
    with pytest.raises(ValueError, match='RuntimeError.*channels'):
        BRECQ(BySize()).prepare(images)


def test_images_alone_fill_their_tensors(tmp_path):
    images = torch.randn(12, 3, 6, 6)
    schedule = dict(type='BlockReconstructor', iterations=2, batch_size=4)
    model, _ = mmrazor_brecq.quantize(BySize(), images, reconstructor=schedule)
    mmrazor_brecq.save(model, tmp_path / 'quantized.pth')
    again = mmrazor_brecq.load(BySize(), tmp_path / 'quantized.pth')
    inputs = inputs_for(BySize(), images)
    assert again.takes_samples
    assert torch.equal(
        run_float(again.architecture, inputs),
        run_float(model.architecture, inputs),
    )
    with pytest.raises(ValueError, match='BySize takes data samples beside'):
        write(model, [], [], None, Request(output='none.onnx'), {})


def test_a_unit_that_is_given_samples_is_refused():
    model = BRECQ(BySize(), partition=dict(type='NetworkPartition'))
    with pytest.raises(ValueError, match="'BySize' is given data samples"):
        model.prepare(torch.randn(2, 3, 6, 6))


def test_with_samples_is_done_once():
    model = brecq(BySize())
    batches = [torch.randn(4, 3, 6, 6), torch.randn(4, 3, 6, 6)]
    images = with_samples(model.architecture, CachedBatches(batches, [4, 4]))
    assert with_samples(model.architecture, images) is images
    teacher = model.prepare(batches[0][:1])
    # A plain list of images does as well.
    assert len([*model.reconstruct(teacher, batches, 0, NearestRounding())])
