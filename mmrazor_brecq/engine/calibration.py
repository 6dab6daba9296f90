"""Collect calibration images from a data loader, and check them."""

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
#: The default budget: half of the free memory, but at most as many bytes as
#: a laptop can spare. With it, a run of a small network on images of 224
#: pixels takes less than 3 GB in all.
DEFAULT_MEMORY, MAX_DEFAULT_BYTES = 'auto', 3 * 2**29
#: Bytes of a budget that are reserved for activations in use.
RESERVED_BYTES = 256 * 2**20


class ImageSet:
    """Set of images, by their content after the pipeline.

    Attributes:
        names (list): The file of each image, None if it is not known.
        left_out (list[dict]): The report of :func:`leave_out`.
        unreadable (dict[str, str]): Reasons of files that cannot be read.
    """

    def __init__(self) -> None:
        self.seen: set[bytes] = set()
        self.names: list[Optional[str]] = []
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
        """Add the images of all other processes."""
        self.seen.update(*all_gather_object(self.seen))

    def add(self, data: dict) -> None:
        """Add the images of a batch."""
        self.seen.update(self.keys(data))
        samples = data.get('data_samples') or [None] * len(data['inputs'])
        self.names += [getattr(x, 'img_path', None) for x in samples]

    def count(self, data: dict) -> int:
        """Return how many images of a batch are in the set."""
        return sum(key in self.seen for key in self.keys(data))


def memory_budget(
    memory: Union[str, float, None], device: torch.device
) -> Optional[int]:
    """Return how many bytes of activations may be cached on a device.

    Args:
        memory (str | float, optional): A size such as ``'1GiB'``, or a
            fraction of the free memory, up to 1. ``'auto'`` is half of the
            free memory, but at most 1.5 GiB. None is no limit.
        device (torch.device): The device of the model.

    Raises:
        ValueError: If ``memory`` is none of these.
    """
    key = KeyPath('test_cfg.calibration.memory', 'the calibration')
    validate(memory, Memory, key)
    if memory is None:
        return None
    if memory == DEFAULT_MEMORY:
        return min(MAX_DEFAULT_BYTES, memory_budget(0.5, device) or 0)
    if isinstance(memory, str):
        return _size(memory)
    if device.type == 'cpu':
        return int(memory * psutil.virtual_memory().available)
    free, _ = torch.get_device_module(device).mem_get_info(device)
    return int(memory * free)


def _size(text: str) -> int:
    """Return the bytes of a size such as ``'1GiB'``, 0 if it is none."""
    match = re.fullmatch(r'(\d+\.?\d*) *([KMGT]?I?B)', text.upper())
    if not match or match[2] not in UNITS:
        return 0
    return int(float(match[1]) * UNITS[match[2]])


def _known(memory: Union[str, float, None]) -> Union[str, float, None]:
    """Return a budget unchanged, if it is one."""
    if isinstance(memory, str):
        fits = memory == DEFAULT_MEMORY or _size(memory) > 0
    else:
        fits = memory is None or 0 < memory <= 1
    if not fits:
        raise ValueError(MEMORY)
    return memory


MEMORY = (
    "a size such as '1GiB' or '500MB', a fraction of the free memory (above "
    "0, up to 1), 'auto' for half of it but at most 1.5 GiB, or None for no "
    'limit'
)
#: Memory for the activations of all images.
Memory = Annotated[
    Union[str, float, None],
    AfterValidator(_known),
    Field(description=MEMORY),
]


def activation_store(
    memory: Union[str, float, None], device: torch.device, folder: str
) -> Store:
    """Return a store for the activations of all images.

    Args:
        memory (str | float, optional): As for :func:`memory_budget`.
            :data:`RESERVED_BYTES` of it are for activations in use.
        device (torch.device): The device of the model.
        folder (str): Folder of the files with the activations that exceed
            the budget.
    """
    return Store(memory_budget(memory, device), folder, RESERVED_BYTES)


@dataclass
class Loader:
    """Arguments of a data loader, of mmengine and of torch."""

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
    """Config of the calibration images.

    Args:
        num_images (int): Number of images, of all processes together.
        dataloader (dict): Config of the data loader of the images.
        memory (str | float, optional): As for :func:`memory_budget`.
        max_unreadable (float): Fraction of the images, from 0 to 1, that may
            be unreadable. They are left out.

    Example:
        >>> calibration = dict(
        ...     num_images=1024,
        ...     dataloader=dict(batch_size=32, dataset=train_dataset),
        ...     memory='1GiB',
        ... )
    """

    num_images: ImageCount
    dataloader: Annotated[dict, Config(Loader)]
    memory: Memory = DEFAULT_MEMORY
    max_unreadable: Fraction = MAX_UNREADABLE


#: Type of a parameter that is a config of calibration images.
CalibrationConfig = Annotated[dict, Config(Calibration)]


def check_count(count: int, batch: int, given: str) -> None:
    """Refuse too few calibration images, and warn of few.

    Args:
        count (int): Number of images, of all processes together.
        batch (int): Images of a batch of the reconstruction.
        given (str): What the user gave, for the message.

    Raises:
        ValueError: If a process has fewer than one image to learn from and
            one for held-out validation.
    """
    least = 2 * get_world_size()
    if count < least:
        raise ValueError(
            f'{given}, expected {least} or more: one to learn from and one '
            'for held-out validation in each process'
        )
    if count < batch:
        print_log(
            f'{given}, not even a batch of {batch}: the result can be worse '
            'than nearest rounding. Give more, a few hundred if there are',
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
    """Return the calibration images of a config, in a store.

    Args:
        model (BRECQ): The model. Its preprocessor is applied.
        loader (DataLoader): The loader of the images.
        calibration (dict): Config as of :class:`Calibration`.
        folder (str): Folder of the files of the store.
        images (ImageSet): The images are added to it.

    Returns:
        CachedBatches: Batches of N x C x H x W.

    Raises:
        ValueError: As for :func:`collect_images`.
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
    """Return the first images of a loader, preprocessed and cached.

    Args:
        model (BRECQ): The model. Its preprocessor is applied.
        loader (DataLoader): The loader of the images of this process, with
            a sampler of mmengine if there are several processes.
        num_images (int): Most images, of all processes together.
        images (ImageSet): The images are added to it.
        store (Store): The store that caches them.
        max_unreadable (float): Fraction of them that may be unreadable.

    Returns:
        CachedBatches: Batches of N x C x H x W.

    Raises:
        ValueError: If there are too few images, if too many cannot be read,
            if one is not finite, or if their sizes differ.
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
            f'{given} images: all of them are used',
            'current',
            logging.WARNING,
        )
    count = local_share(num_images)
    readable = ReadableBatches(loader, count, max_unreadable)
    batches = _batches(model, readable, count, images)
    first = next(batches)
    whole = min(loader.batch_size or len(first), count)
    # Large images are cached in parts of a batch, which limits the memory
    # that one part needs between two units.
    size = images_per_pass(
        first[0].numel(), max_images=whole, max_elements=MAX_ELEMENTS_FORWARD
    )
    sizes = [
        part
        for start in range(0, count, whole)
        for part in _split(min(whole, count - start), size)
    ]
    cached = CachedBatches(
        _resize(chain([first], batches), sizes), sizes, store
    )
    readable.log_unreadable()
    images.unreadable = readable.unreadable
    images.left_out = leave_out(cached, images.names)
    return cached


def _split(count: int, size: int) -> list[int]:
    """Return the sizes of parts of a batch, the last of which is the rest."""
    return [min(size, count - i) for i in range(0, count, size)]


def _resize(
    batches: Iterator[Tensor], sizes: Sequence[int]
) -> Iterator[Tensor]:
    """Yield the images of batches in batches of other sizes."""
    left = next(batches)
    for size in sizes:
        while len(left) < size:
            left = torch.cat([left, next(batches)])
        yield left[:size]
        left = left[size:]


def _available(loader: DataLoader) -> Optional[int]:
    """Return how many images all processes have, None if unknown."""
    dataset: Any = loader.dataset
    sampler: Any = loader.sampler
    try:
        total, local = len(dataset), len(sampler)
    except TypeError:  # An iterable data set has no length.
        return None
    if loader.drop_last and loader.batch_size:
        local -= local % loader.batch_size
    # Samplers repeat some images, so that all processes have equally many.
    return min(total, sum(all_gather_object(local)))


def _batches(
    model: BRECQ, loader: ReadableBatches, num_images: int, images: ImageSet
) -> Iterator[Tensor]:
    """Yield checked and preprocessed batches of N x C x H x W."""
    count, shapes = 0, set()
    for data in loader:
        if 'inputs' not in data:
            raise ValueError(
                'The pipeline of `test_cfg.calibration.dataloader.dataset` '
                f'gives {", ".join(map(repr, data))}, expected `inputs`: '
                "for image files, begin with `dict(type='LoadImageFromFile')` "
                'and end with a step that packs, such as `PackClsInputs`'
            )
        images.add(data)
        batch = _preprocess(model, data)[: num_images - count]
        bad = (~batch.flatten(1).isfinite().all(1)).nonzero().flatten()
        if len(bad):
            raise ValueError(
                f'Calibration image {count + int(bad[0])} contains NaN or '
                'infinity: repair it, or change '
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
    """Return the preprocessed images of a batch, on the model's device."""
    with torch.no_grad():
        inputs: Tensor = model.data_preprocessor(data, False)['inputs']
    return inputs.to(next(model.parameters()).device)


def fingerprint_images(images: CachedBatches) -> str:
    """Return the SHA-256 of the images of each process, in hexadecimal."""
    digest = hashlib.sha256()
    for batch in images.split():
        digest.update(batch.cpu().contiguous().numpy().tobytes())
    return '-'.join(all_gather_object(digest.hexdigest()))


def warn_of_overlap(count: int, total: int) -> None:
    """Warn if calibration images are test images, too.

    Args:
        count (int): Calibration images that are test images.
        total (int): All calibration images.
    """
    if count:
        print_log(
            f'{count} of the {total} calibration images are test images too: '
            'the measured accuracy of the quantized model is too high. Point '
            '`test_cfg.calibration.dataloader.dataset` to training images',
            'current',
            logging.WARNING,
        )
