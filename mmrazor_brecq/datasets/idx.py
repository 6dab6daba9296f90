"""Images and labels in the idx format of MNIST and Fashion-MNIST."""

from __future__ import annotations

import gzip
import math
import os.path as osp
import zlib
from typing import Any

import numpy as np
from mmengine.dataset import BaseDataset

from ..registry import DATASETS

#: Largest array of a file, in bytes.
MAX_BYTES = 2**32
#: Largest ratio of an array's size to the size of its compressed file.
MAX_COMPRESSION = 1040


def read_idx(path: str) -> np.ndarray:
    """Read one idx file of unsigned bytes.

    Args:
        path (str): An idx file, gzip-compressed where it ends with ``.gz``.

    Returns:
        np.ndarray: The array, ``uint8``, in the shape that the file states.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is no idx file of bytes, or is truncated.
    """
    if not osp.isfile(path):
        raise FileNotFoundError(
            f'No idx file at {path!r}: set `data_root` of the dataset to '
            'the folder that holds it'
        )
    compressed = path.endswith('.gz')
    opened: Any = gzip.open if compressed else open
    limit = osp.getsize(path) * (MAX_COMPRESSION if compressed else 1)
    try:
        with opened(path, 'rb') as file:
            kind = file.read(4)
            if kind[:3] != b'\x00\x00\x08' or len(kind) < 4:
                raise ValueError('not an idx file of unsigned bytes')
            shape = np.frombuffer(file.read(4 * kind[3]), '>u4').tolist()
            size = math.prod(shape)
            if len(shape) < kind[3] or size > min(limit, MAX_BYTES):
                raise ValueError(f'not whole: its shape would be {shape}')
            # No more than it claims: few bytes can decompress to many.
            data = file.read(size + 1)
            if len(data) != size:
                found = 'more' if len(data) > size else len(data)
                raise ValueError(
                    f'not whole: it claims {size} bytes, and has {found}'
                )
    except (ValueError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f'{path!r} is {error}: download it again') from error
    return np.frombuffer(data, np.uint8).reshape(shape)


@DATASETS.register_module()
class IDXDataset(BaseDataset):
    """A classification data set in two idx files.

    Every sample has ``img`` (H x W x 3, ``uint8``, the gray value in all
    three channels) and ``gt_label``.

    Args:
        images (str): File of images, relative to ``data_root``.
        labels (str): File of labels, relative to ``data_root``.
        **kwargs: As for :class:`mmengine.dataset.BaseDataset`, such as
            ``data_root``, ``metainfo=dict(classes=...)`` and ``indices``.

    Example:
        >>> dataset = dict(
        ...     type='mmrazor_brecq.IDXDataset',
        ...     data_root='fashion-mnist',
        ...     images='t10k-images-idx3-ubyte.gz',
        ...     labels='t10k-labels-idx1-ubyte.gz',
        ... )
    """

    def __init__(self, images: str, labels: str, **kwargs: Any) -> None:
        self.images = images
        self.labels = labels
        super().__init__(**kwargs)

    def load_data_list(self) -> list[dict]:
        """Read both files.

        Raises:
            ValueError: If their numbers of samples differ.
        """
        images, labels = (
            read_idx(osp.join(self.data_root, name))
            for name in (self.images, self.labels)
        )
        if len(images) != len(labels):
            raise ValueError(
                f'{self.images!r} has {len(images)} images, '
                f'{self.labels!r} {len(labels)} labels'
            )
        return [
            dict(img=np.repeat(image[..., None], 3, -1), gt_label=int(label))
            for image, label in zip(images, labels)
        ]
