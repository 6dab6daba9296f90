"""Collect calibration images from a data loader, and check them."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Annotated, Any, Optional

import torch
from mmengine.dist import all_gather_object, get_world_size
from mmengine.logging import print_log
from mmengine.structures import BaseDataElement
from pydantic import Field
from torch import Tensor
from torch.utils.data import DataLoader

from ..activations import (
    MAX_ELEMENTS_FORWARD,
    CachedBatches,
    Store,
    images_per_pass,
    with_samples,
)
from ..algorithms import BRECQ
from ..graph import images_of
from ..runtime.distributed import local_share
from ..validation import Config, Count, Fraction, ImageCount, Natural
from .image_set import ImageSet
from .loaders import CALIBRATION, MAX_UNREADABLE, ReadableBatches
from .memory import DEFAULT_MEMORY, Memory, activation_store
from .outliers import leave_out

#: How a user names the images and their number, with --recipe and without.
IMAGES = f'--calibration (`{CALIBRATION}`)'
NUM_IMAGES = '--num-images {} (`test_cfg.calibration.num_images`)'


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


def check_count(count: int, batch: int, given: str, used: str = '') -> None:
    """Refuse too few calibration images, and warn of few.

    Args:
        count (int): Number of images, of all processes together.
        batch (int): Images of a batch of the reconstruction.
        given (str): What the user gave, for the message.
        used (str): What is used in place of it, if it is another number.

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
    few = (
        f', not even a batch of {batch}: the result can be worse than nearest '
        'rounding. Give more, a few hundred if there are'
        if count < batch
        else ''
    )
    if few or used:
        print_log(f'{given}{few or used}', 'current', logging.WARNING)


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
    given, used = NUM_IMAGES.format(num_images), ''
    available = _available(loader)
    if available is not None and available < num_images:
        num_images = available
        given += f', but {IMAGES} has {available}'
        used = ' images: all of them are used'
    check_count(num_images, model.reconstructor.batch_size, given, used)
    count = local_share(num_images)
    readable = ReadableBatches(loader, count, max_unreadable)
    data: list[Any] = []
    batches = _batches(model, readable, count, images, data)
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
    known = len(data) == count and all(
        isinstance(sample, BaseDataElement) for sample in data
    )
    return with_samples(model.architecture, cached, data if known else None)


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
    model: BRECQ,
    loader: ReadableBatches,
    num_images: int,
    images: ImageSet,
    samples: list[Any],
) -> Iterator[Tensor]:
    """Yield checked and preprocessed batches of N x C x H x W.

    Their data samples, if they have any, are added to a list.
    """
    count = 0
    for data in loader:
        images.add(data)
        batch, found = _preprocess(model, data)
        batch = batch[: num_images - count]
        samples += found[: len(batch)]
        bad = (~batch.flatten(1).isfinite().all(1)).nonzero().flatten()
        if len(bad):
            raise ValueError(
                f'Calibration image {count + int(bad[0])} contains NaN or '
                f'infinity: repair it, or change {IMAGES}'
            )
        yield batch
        count += len(batch)
        if count == num_images:
            break
    if count < num_images:
        raise ValueError(
            f'{NUM_IMAGES.format(num_images)}, but {IMAGES} gives '
            f'{count} images: lower the number, or give it more images'
        )


def _preprocess(model: BRECQ, data: dict) -> tuple[Tensor, list[Any]]:
    """Return the preprocessed images of a batch, and their data samples.

    The images are on the model's device.
    """
    with torch.no_grad():
        found = model.data_preprocessor(data, False)
    inputs: Tensor = found['inputs']
    samples = [*(found.get('data_samples') or ())]
    return inputs.to(next(model.parameters()).device), samples


def fingerprint_images(images: CachedBatches) -> str:
    """Return the SHA-256 of the images of each process, in hexadecimal."""
    digest = hashlib.sha256()
    for batch in images.split():
        digest.update(images_of(batch).cpu().contiguous().numpy().tobytes())
    return '-'.join(all_gather_object(digest.hexdigest()))
