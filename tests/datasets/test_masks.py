"""Masks that do not fit their images are named before a metric sees them."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.dataset import BaseDataset
from PIL import Image

from mmrazor_brecq.datasets.watched import WatchedImages


class LoadAnnotations:
    """Reads the mask beside an image, as the transforms of hosts do."""

    def __call__(self, data):
        mask = np.asarray(Image.open(data['img_path'].replace('img', 'mask')))
        return dict(data, mask=torch.tensor(mask))


def pack(data):
    mask = data['mask']
    mask = mask[None] if mask.dim() == 2 else mask
    sample = SimpleNamespace(
        gt_sem_seg=SimpleNamespace(data=mask.long()),
        metainfo=dict(ori_shape=(8, 6), img_shape=(16, 12)),
    )
    return dict(inputs=torch.zeros(3, 16, 12), data_samples=sample)


class Masked(BaseDataset):
    METAINFO = dict(classes=('background', 'cat', 'dog'))

    def load_data_list(self):
        return [dict(img_path=self.ann_file)]


@pytest.fixture
def images(tmp_path):
    """A function that returns a data set of one image with this mask."""

    def make(mask):
        Image.fromarray(np.zeros((8, 6, 3), np.uint8)).save(
            tmp_path / 'img.png'
        )
        if isinstance(mask, bytes):
            (tmp_path / 'mask.png').write_bytes(mask)
        elif mask is not None:
            Image.fromarray(mask).save(tmp_path / 'mask.png')
        return WatchedImages(
            Masked(
                ann_file=str(tmp_path / 'img.png'),
                pipeline=[LoadAnnotations(), pack],
            )
        )

    return make


@pytest.mark.parametrize(
    'shape', [(8, 6), (16, 12)], ids=['of the file', 'of the input']
)
def test_a_mask_that_fits_passes(images, shape, warnings_log):
    mask = np.full(shape, 2, np.uint8)
    mask[0] = 255
    assert images(mask)[0]['data_samples'].gt_sem_seg.data.max() == 255
    assert not warnings_log


@pytest.mark.parametrize(
    'mask, reason',
    [
        (np.zeros((6, 8), np.uint8), '6 x 8 pixels, and the image 8 x 6'),
        (np.zeros((8, 6, 3), np.uint8), r'\(8, 6, 3\), expected one channel'),
        (b'no image', 'UnidentifiedImageError'),
        (None, 'No such file.*mask.png'),
    ],
    ids=['transposed', 'in color', 'damaged', 'missing'],
)
def test_a_mask_that_does_not_fit_is_named(images, mask, reason):
    with pytest.raises(ValueError, match=reason) as error:
        images(mask)[0]
    assert 'img.png' in str(error.value)
    assert '--no-eval' in str(error.value)


def test_pixels_of_no_class_are_named_once(images, warnings_log):
    data = images(np.full((8, 6), 7, np.uint8))
    assert data[0] is not None and data[0] is not None
    assert len(warnings_log) == 1
    assert 'pixels of [7]' in warnings_log[0]
    assert '0 to 2' in warnings_log[0]
