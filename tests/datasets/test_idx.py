from __future__ import annotations

import gzip

import numpy as np
import pytest

from mmrazor_brecq.datasets.idx import IDXDataset, read_idx


def write(path, array, opener=open):
    head = bytes([0, 0, 8, array.ndim])
    head += b''.join(size.to_bytes(4, 'big') for size in array.shape)
    with opener(path, 'wb') as file:
        file.write(head + array.tobytes())


@pytest.mark.parametrize('ending, opener', [('', open), ('.gz', gzip.open)])
def test_round_trip(tmp_path, ending, opener):
    array = np.random.default_rng(0).integers(0, 256, (5, 4, 3), np.uint8)
    path = str(tmp_path / f'images{ending}')
    write(path, array, opener)
    assert np.array_equal(read_idx(path), array)


def test_cut_short(tmp_path):
    path = tmp_path / 'images'
    write(path, np.zeros((5, 4), np.uint8))
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ValueError, match='claims 20 bytes, and has 17'):
        read_idx(str(path))


def test_no_idx_file(tmp_path):
    (tmp_path / 'images').write_bytes(b'GIF89a')
    with pytest.raises(ValueError, match='not an idx file'):
        read_idx(str(tmp_path / 'images'))
    with pytest.raises(FileNotFoundError, match='data_root'):
        read_idx(str(tmp_path / 'none'))


def test_images_and_labels_must_agree(tmp_path):
    write(tmp_path / 'x', np.zeros((5, 4, 4), np.uint8))
    write(tmp_path / 'y', np.zeros(4, np.uint8))
    with pytest.raises(ValueError, match='5 images.* 4 labels'):
        IDXDataset(images='x', labels='y', data_root=str(tmp_path))
