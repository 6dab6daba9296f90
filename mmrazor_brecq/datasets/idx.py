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

#: Bytes that the array of a file may have, and how much smaller its file is
#: at the most.
MOST_BYTES, SMALLER = 2**32, 1040


def read_idx(path: str) -> np.ndarray:
    """Read one idx file of unsigned bytes.

    Args:
        path (str): An idx file, gzip-compressed where it ends with ``.gz``.

    Returns:
        np.ndarray: The array, ``uint8``, in the shape that the file states.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is no idx file of bytes, or is cut short.
    """
    if not osp.isfile(path):
        raise FileNotFoundError(
            f'No idx file at {path!r}: set `data_root` of the dataset to '
            'the folder that holds it'
        )
    packed = path.endswith('.gz')
    opened: Any = gzip.open if packed else open
    most = osp.getsize(path) * (SMALLER if packed else 1)
    try:
        with opened(path, 'rb') as file:
            kind = file.read(4)
            if kind[:3] != b'\x00\x00\x08' or len(kind) < 4:
                raise ValueError('not an idx file of unsigned bytes')
            shape = np.frombuffer(file.read(4 * kind[3]), '>u4').tolist()
            size = math.prod(shape)
            if len(shape) < kind[3] or size > min(most, MOST_BYTES):
                raise ValueError(f'not whole: its shape would be {shape}')
            # No more than it promises: little can unpack to a lot.
            data = file.read(size + 1)
            if len(data) != size:
                raise ValueError(
                    f'not whole: it promises {size} bytes, and holds '
                    f'{"more" if len(data) > size else len(data)}'
                )
    except (ValueError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f'{path!r} is {error}: get it anew') from error
    return np.frombuffer(data, np.uint8).reshape(shape)


@DATASETS.register_module()
class IDXDataset(BaseDataset):
    """A classification data set in two idx files.

    Every sample has ``img`` (H x W x 3, ``uint8``, the grey value in all
    three channels) and ``gt_label``.

    Args:
        images (str): File of images, relative to ``data_root``.
        labels (str): File of labels, relative to ``data_root``.
        **kwargs: As for :class:`mmengine.dataset.BaseDataset`, such as
            ``data_root``, ``metainfo=dict(classes=...)`` and ``indices``.
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
                f'{self.images!r} holds {len(images)} images, '
                f'{self.labels!r} {len(labels)} labels'
            )
        return [
            dict(img=np.repeat(image[..., None], 3, -1), gt_label=int(label))
            for image, label in zip(images, labels)
        ]
