"""What is known of a set of images: their content, files and sizes."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable
from typing import Any, Optional

from mmengine.dist import all_gather_object
from mmengine.logging import print_log

#: The shape of an image: channels, height, width.
Size = tuple[int, ...]
#: Number of sizes that a message names.
MAX_NAMED = 3


class ImageSet:
    """Set of calibration images, as the pipeline returns them.

    Attributes:
        names (list): The file of each image, None if it is not known.
        sizes (dict): The file of the first image of each size, before the
            model's preprocessor pads it.
        left_out (list[dict]): The report of :func:`leave_out`.
        unreadable (dict[str, str]): Reasons of files that cannot be read.
    """

    def __init__(self) -> None:
        self.seen: set[bytes] = set()
        self.names: list[Optional[str]] = []
        self.sizes: dict[Size, Optional[str]] = {}
        self.left_out: list[dict[str, object]] = []
        self.unreadable: dict[str, str] = {}

    @staticmethod
    def keys(data: dict) -> list[bytes]:
        """Return a digest of each image of a batch."""
        return [
            hashlib.blake2b(
                image.contiguous().cpu().numpy().tobytes(), digest_size=16
            ).digest()
            for image in data['inputs']
        ]

    def gather(self) -> None:
        """Add the images of all other processes.

        Raises:
            ValueError: As for :meth:`add`.
        """
        self.seen.update(*all_gather_object(self.seen))
        for sizes in all_gather_object(self.sizes):
            self._add_sizes(sizes.items())

    def add(self, data: dict) -> None:
        """Add the images of a batch.

        Raises:
            ValueError: If their sizes differ.
        """
        self.seen.update(self.keys(data))
        samples = data.get('data_samples') or [None] * len(data['inputs'])
        names = [getattr(sample, 'img_path', None) for sample in samples]
        self.names += names
        self._add_sizes(zip(_sizes(data), names))

    def _add_sizes(self, sizes: Iterable[tuple[Size, Optional[str]]]) -> None:
        """Add sizes and their files, and refuse a second size."""
        for size, name in sizes:
            self.sizes.setdefault(size, name)
        if len(self.sizes) > 1:
            found = [
                _in_words(size) + (f' ({name!r})' if name else '')
                for size, name in self.sizes.items()
            ]
            shown, more = ', '.join(found[:MAX_NAMED]), len(found) - MAX_NAMED
            raise ValueError(
                f'Calibration images have the sizes {shown}'
                + (f' and {more} more' if more > 0 else '')
                + ' (channels x height x width), expected one size: give the '
                'pipeline of `test_cfg.calibration.dataloader` (with '
                '--recipe, the test pipeline of the float config) a '
                '`Resize(scale=(W, H))`, or a `Resize(scale=(W, H), '
                'keep_ratio=True)` and a `Pad(size=(W, H))`, before it packs'
            )

    def count(self, data: dict) -> int:
        """Return how many images of a batch are in the set."""
        return sum(key in self.seen for key in self.keys(data))

    def warn_of_overlap(self, count: int) -> None:
        """Warn if calibration images are test images, too.

        Args:
            count (int): Calibration images that are test images.
        """
        if count:
            print_log(
                f'{count} of the {len(self.seen)} calibration images are test '
                'images too: the measured accuracy of the quantized model is '
                'too high. Name a folder of other images with --calibration, '
                'or point `test_cfg.calibration.dataloader.dataset` to '
                'training images',
                'current',
                logging.WARNING,
            )

    def warn_of_size(self, data: dict) -> None:
        """Warn if no image of a test batch has the calibration images' size.

        Args:
            data (dict): The first batch of test images.
        """
        other = _sizes(data)
        if not set(other) & set(self.sizes):
            print_log(
                f'Calibration images are {_in_words(*self.sizes)} (channels x '
                f'height x width), test images {_in_words(other[0])}: what is '
                'fitted to one size may not suit the other. Give both the '
                'same `Resize` in their pipelines, `test_dataloader` and '
                '`test_cfg.calibration.dataloader`',
                'current',
                logging.WARNING,
            )


def _sizes(data: dict[str, Any]) -> list[Size]:
    """Return the size of each image of a batch."""
    return [tuple(image.shape) for image in data['inputs']]


def _in_words(size: Size) -> str:
    return ' x '.join(map(str, size))
