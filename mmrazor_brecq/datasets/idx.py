"""Images and labels in the idx format of MNIST and Fashion-MNIST."""

from __future__ import annotations

import gzip
import os.path as osp
from typing import Any

import numpy as np
from mmengine.dataset import BaseDataset

from ..registry import DATASETS


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
    with (gzip.open if path.endswith('.gz') else open)(path, 'rb') as file:
        data = file.read()
    if data[:3] != b'\x00\x00\x08':
        raise ValueError(f'{path!r} is not an idx file of unsigned bytes')
    start = 4 + 4 * data[3]
    shape = np.frombuffer(data[4:start], '>u4').astype(int)
    if len(data) - start != shape.prod():
        raise ValueError(
            f'{path!r} promises {shape.prod()} bytes, and holds '
            f'{len(data) - start}: it is cut short, get it anew'
        )
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


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
