"""Calibration images: from a data loader, checked before work starts."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Annotated, Any, Optional, Union

import psutil
import torch
from mmengine.dist import all_gather_object, get_world_size
from mmengine.logging import print_log
from pydantic import AfterValidator, Field
from torch import Tensor
from torch.utils.data import DataLoader

from ..activations import (
    MAX_ELEMENTS_FORWARD,
    CachedBatches,
    Store,
    images_per_pass,
)
from ..algorithms import BRECQ
from ..runtime.distributed import local_share
from ..validation import (
    Config,
    Count,
    Fraction,
    ImageCount,
    KeyPath,
    Natural,
    validate,
)
from .loaders import MAX_UNREADABLE, ReadableBatches
from .outliers import leave_out

UNITS = {
    'B': 1,
    **{f'{c}B': 1000**i for i, c in enumerate('KMGT', 1)},
    **{f'{c}IB': 1024**i for i, c in enumerate('KMGT', 1)},
}
#: The budget where none is given: half of what is free, and no more bytes
#: than a laptop can spare. With this many a run of a small network at 224
#: pixels takes less than 3 GB in all.
DEFAULT_MEMORY, MOST_BY_DEFAULT = 'auto', 3 * 2**29
#: Bytes of a budget that are not for activations which wait.
AT_WORK = 256 * 2**20


class ImageSet:
    """Remembers images by their content, as the pipeline gives them.

    Attributes:
        names (list): The file of each image, None where it is not known.
        left_out (list[dict]): What :func:`leave_out` says of them.
        unreadable (dict[str, str]): Files that could not be read, and why.
    """

    def __init__(self) -> None:
        self.seen: set[bytes] = set()
        self.names: list[Optional[str]] = []
        self.left_out: list[dict[str, Any]] = []
        self.unreadable: dict[str, str] = {}

    @staticmethod
    def keys(data: dict) -> list[bytes]:
        """A digest of each image of a batch."""
        return [
            hashlib.blake2b(
                image.contiguous().cpu().numpy().tobytes(), digest_size=16
            ).digest()
            for image in data['inputs']
        ]

    def gather(self) -> None:
        """Remember what the other processes remember, too."""
        self.seen.update(*all_gather_object(self.seen))

    def add(self, data: dict) -> None:
        """Remember the images of a batch."""
        self.seen.update(self.keys(data))
        samples = data.get('data_samples') or [None] * len(data['inputs'])
        self.names += [getattr(x, 'img_path', None) for x in samples]

    def count(self, data: dict) -> int:
        """How many images of a batch are among the remembered ones."""
        return sum(key in self.seen for key in self.keys(data))


def memory_budget(
    memory: Union[str, float, None], device: torch.device
) -> Union[int, None]:
    """Bytes of activations that may be held on a device.

    Args:
        memory (str | float, optional): A size such as ``'1GiB'``, or a
            share of what is free, up to 1; ``'auto'`` for half of it, but
            1.5 GiB at the most; None for no limit.
        device (torch.device): Where the model is.

    Raises:
        ValueError: If it is neither.
    """
    place = KeyPath('test_cfg.calibration.memory', 'the calibration')
    validate(memory, Memory, place)
    if memory is None:
        return None
    if memory == DEFAULT_MEMORY:
        return min(MOST_BY_DEFAULT, memory_budget(0.5, device) or 0)
    if isinstance(memory, str):
        return _size(memory)
    if device.type == 'cpu':
        return int(memory * psutil.virtual_memory().available)
    free, _ = torch.get_device_module(device).mem_get_info(device)
    return int(memory * free)


def _size(text: str) -> int:
    """The bytes of a size, 0 of what is none."""
    match = re.fullmatch(r'(\d+\.?\d*) *([KMGT]?I?B)', text.upper())
    if not match or match[2] not in UNITS:
        return 0
    return int(float(match[1]) * UNITS[match[2]])


def _known(memory: Union[str, float, None]) -> Union[str, float, None]:
    if isinstance(memory, str):
        fits = memory == DEFAULT_MEMORY or _size(memory) > 0
    else:
        fits = memory is None or 0 < memory <= 1
    if not fits:
        raise ValueError(MEMORY)
    return memory


MEMORY = (
    "a size such as '1GiB' or '500MB', a share of what is free (above 0, up "
    "to 1), 'auto' for half of it but 1.5 GiB at the most, or None for no "
    'limit'
)
#: What the activations of all images may take.
Memory = Annotated[
    Union[str, float, None],
    AfterValidator(_known),
    Field(description=MEMORY),
]


def activation_store(
    memory: Union[str, float, None], device: torch.device, folder: str
) -> Store:
    """Where the activations of all images are held.

    Args:
        memory (str | float, optional): As for :func:`memory_budget`. It
            holds what waits, and :data:`AT_WORK` of what is worked on.
        device (torch.device): Where the model is.
        folder (str): Where the files lie that memory has no room for.
    """
    return Store(memory_budget(memory, device), folder, AT_WORK)


@dataclass
class Loader:
    """What mmengine and torch take for a data loader."""

    dataset: Any
    batch_size: Count = 1
    num_workers: Natural = 0
    sampler: Any = None
    batch_sampler: Any = None
    collate_fn: Any = None
    pin_memory: bool = False
    pin_memory_device: str = ''
    drop_last: bool = False
    timeout: Annotated[float, Field(ge=0)] = 0
    worker_init_fn: Any = None
    multiprocessing_context: Any = None
    generator: Any = None
    prefetch_factor: Optional[Count] = None
    persistent_workers: bool = False
    in_order: bool = True
    indices: Any = None
    num_batch_per_epoch: Optional[Count] = None


@dataclass
class Calibration:
    """Which images to calibrate on, and what they may take.

    Args:
        num_images (int): How many.
        dataloader (dict): Where they come from.
        memory (str | float, optional): As for :func:`memory_budget`.
        max_unreadable (float): Fraction of the images that may be unreadable,
            and are left out.
    """

    num_images: ImageCount
    dataloader: Annotated[dict, Config(Loader)]
    memory: Memory = DEFAULT_MEMORY
    max_unreadable: Fraction = MAX_UNREADABLE


#: How a parameter says that it takes the keys of a calibration.
CalibrationConfig = Annotated[dict, Config(Calibration)]


def check_count(count: int, batch: int, given: str) -> None:
    """Refuse too few calibration images, and warn of few.

    Args:
        count (int): Images, those of all processes together.
        batch (int): Images of them that are learned from at a time.
        given (str): What the user gave.

    Raises:
        ValueError: If there is not one to learn from and one to judge by.
    """
    least = 2 * get_world_size()
    if count < least:
        raise ValueError(
            f'{given}, expected {least} or more: one to learn from and one '
            'to judge by in each process'
        )
    if count < batch:
        print_log(
            f'{given}, not even a batch of {batch}: what is learned from so '
            'few can be worse than nearest rounding. Give more, some hundred '
            'if there are',
            'current',
            logging.WARNING,
        )


def cache_images(
    model: BRECQ,
    loader: DataLoader,
    calibration: Mapping[str, Any],
    folder: str,
    images: ImageSet,
) -> CachedBatches:
    """The calibration images that a config names, held as it says.

    Args:
        model (BRECQ): With its preprocessor.
        loader (DataLoader): Of the images.
        calibration (dict): ``num_images``, and, if they are given,
            ``memory`` for :func:`activation_store` and ``max_unreadable``.
        folder (str): Where the files lie that memory has no room for.
        images (ImageSet): Remembers them.

    Raises:
        ValueError: If a key is missing, or taken by nothing.
    """
    device = next(model.parameters()).device
    memory = calibration.get('memory', DEFAULT_MEMORY)
    store = activation_store(memory, device, folder)
    return collect_images(
        model,
        loader,
        calibration['num_images'],
        images,
        store,
        calibration.get('max_unreadable', MAX_UNREADABLE),
    )


def collect_images(
    model: BRECQ,
    loader: DataLoader,
    num_images: int,
    images: ImageSet,
    store: Store,
    max_unreadable: float = MAX_UNREADABLE,
) -> CachedBatches:
    """The first images of a loader, preprocessed.

    Args:
        model (BRECQ): Its preprocessor is applied.
        loader (DataLoader): Where they come from: the share of this
            process, as mmengine's samplers give it.
        num_images (int): How many at most, in all processes together.
        images (ImageSet): Remembers them.
        store (Store): Where they are held.
        max_unreadable (float): Fraction of them that may be unreadable.

    Returns:
        Rows: Batches N x C x H x W.

    Raises:
        ValueError: If there are too few, too many that cannot be read, or
            one that is not finite.
    """
    given = f'test_cfg.calibration.num_images={num_images}'
    available = _available(loader)
    few = available is not None and available < num_images
    if available is not None and few:
        num_images = available
        given += (
            ', but the data set of `test_cfg.calibration.dataloader` has '
            f'{available}'
        )
    check_count(num_images, model.reconstructor.batch_size, given)
    if few:
        print_log(
            f'{given} images: all of them are taken',
            'current',
            logging.WARNING,
        )
    count = local_share(num_images)
    readable = ReadableBatches(loader, count, max_unreadable)
    batches = _batches(model, readable, count, images)
    first = next(batches)
    whole = min(loader.batch_size or len(first), count)
    # What waits between two units is that of one part of a batch.
    size = images_per_pass(
        first[0].numel(), max_images=whole, max_elements=MAX_ELEMENTS_FORWARD
    )
    sizes = [
        min(size, stop - i)
        for start in range(0, count, whole)
        for stop in [min(start + whole, count)]
        for i in range(start, stop, size)
    ]
    rows = CachedBatches(_cut(chain([first], batches), sizes), sizes, store)
    readable.tell()
    images.unreadable = readable.unreadable
    images.left_out = leave_out(rows, images.names)
    return rows


def _cut(batches: Iterator[Tensor], sizes: Sequence[int]) -> Iterator[Tensor]:
    """Cut batches, and join what is left of them, to parts of given sizes."""
    left = next(batches)
    for size in sizes:
        while len(left) < size:
            left = torch.cat([left, next(batches)])
        yield left[:size]
        left = left[size:]


def _available(loader: DataLoader) -> Optional[int]:
    """How many images the loaders of all processes give; None if unknown."""
    dataset: Any = loader.dataset
    sampler: Any = loader.sampler
    try:
        whole, mine = len(dataset), len(sampler)
    except TypeError:  # A stream.
        return None
    if loader.drop_last and loader.batch_size:
        mine -= mine % loader.batch_size
    # Samplers repeat some images, so that all processes have as many.
    return min(whole, sum(all_gather_object(mine)))


def _batches(
    model: BRECQ, loader: ReadableBatches, num_images: int, images: ImageSet
) -> Iterator[Tensor]:
    count, shapes = 0, set()
    for data in loader:
        if 'inputs' not in data:
            raise ValueError(
                'The pipeline of `test_cfg.calibration.dataloader.dataset` '
                f'gives {", ".join(map(repr, data))}, expected `inputs`: '
                "where images are files, `dict(type='LoadImageFromFile')` "
                'comes first, and one that packs, such as `PackClsInputs`, '
                'last'
            )
        images.add(data)
        batch = _preprocess(model, data)[: num_images - count]
        bad = (~batch.flatten(1).isfinite().all(1)).nonzero().flatten()
        if len(bad):
            raise ValueError(
                f'Calibration image {count + int(bad[0])} holds NaN or '
                'infinity: mend it, or change '
                '`test_cfg.calibration.dataloader`'
            )
        shapes.add(tuple(batch.shape[1:]))
        if len(shapes) > 1:
            raise ValueError(
                f'Calibration images have the sizes {shapes}: give '
                'them one size in the pipeline of '
                '`test_cfg.calibration.dataloader`'
            )
        yield batch
        count += len(batch)
        if count == num_images:
            break
    if count < num_images:
        raise ValueError(
            f'test_cfg.calibration.num_images asks for {num_images}, but the '
            'data set of `test_cfg.calibration.dataloader` gives '
            f'{count} images: lower the number, or give it more images'
        )


def _preprocess(model: BRECQ, data: dict) -> Tensor:
    with torch.no_grad():
        inputs: Any = model.data_preprocessor(data, False)['inputs']
    return inputs.to(next(model.parameters()).device)


def fingerprint_images(images: CachedBatches) -> str:
    """Hash of all images in all processes, as hexadecimal digits."""
    digest = hashlib.sha256()
    for batch in images.split():
        digest.update(batch.cpu().contiguous().numpy().tobytes())
    return '-'.join(all_gather_object(digest.hexdigest()))


def warn_of_overlap(count: int, total: int) -> None:
    """Say so if calibration images are test images."""
    if count:
        print_log(
            f'{count} of the {total} calibration images are test images too: '
            'the accuracy of the quantized model will look better than it '
            'is. Point `test_cfg.calibration.dataloader.dataset` to training '
            'images',
            'current',
            logging.WARNING,
        )
