"""Build data loaders that name the images that cannot be read."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any, Callable, Optional, Union

from mmengine.dist import all_gather_object
from mmengine.logging import print_log
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from ..datasets import Unreadable, watched

#: A collated batch of a data loader, with the key ``inputs``.
Batch = dict[str, Any]
#: A batch of the images that can be read, None if there are none, and the
#: images that cannot be read.
CheckedBatch = tuple[Optional[Batch], list[Unreadable]]

#: The keys of the data loaders of a run.
TEST, CALIBRATION = 'test_dataloader', 'test_cfg.calibration.dataloader'
#: Fraction of calibration images that may be unreadable, by default.
MAX_UNREADABLE = 0.01
#: Number of files that a message names.
MAX_NAMED = 5


class WatchingLoader(DataLoader):
    """Data loader that knows which images cannot be read.

    Iteration needs all images, as an evaluation does: the first that cannot
    be read is an error. :meth:`with_unreadable` returns them instead.

    Attributes:
        key (str): The key of its config.
    """

    key: str

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        for data, bad in self.with_unreadable():
            if bad:
                raise ValueError(
                    f'The image {bad[0]} cannot be read: repair it, or '
                    'remove it from the data set'
                )
            if data is not None:
                yield data

    def with_unreadable(
        self,
    ) -> Iterator[CheckedBatch]:
        """Yield each batch, and its images that cannot be read.

        The batch is None if none of its images can be read.

        Raises:
            ValueError: If the pipeline gives no images.
        """
        for data, bad in super().__iter__():
            if data is not None:
                check_inputs(data, self.key)
            yield data, bad


def check_inputs(data: Batch, key: str) -> None:
    """Check that the batches of a data loader have images.

    Args:
        data (dict): A collated batch.
        key (str): The key of the data loader's config.

    Raises:
        ValueError: If there is no ``inputs``.
    """
    if 'inputs' not in data:
        raise ValueError(
            f'The pipeline of `{key}.dataset` gives '
            f'{", ".join(map(repr, data))}, expected `inputs`: for image '
            "files, begin with `dict(type='LoadImageFromFile')` and end with "
            'a step that packs, such as `PackClsInputs`, or `PackInputs` of '
            'mmpretrain'
        )


class _CollateReadable:
    """Function that collates the images of a batch that can be read.

    Args:
        collate (callable): The collate function of the loader.
    """

    def __init__(self, collate: Callable[[list], Batch]) -> None:
        self.collate = collate

    def __call__(self, items: Sequence) -> CheckedBatch:
        bad = [item for item in items if isinstance(item, Unreadable)]
        good = [item for item in items if not isinstance(item, Unreadable)]
        return (self.collate(good) if good else None), bad


def build_dataloader(
    dataloader: Union[DataLoader, dict],
    seed: Optional[int] = None,
    diff_rank_seed: bool = False,
    key: str = TEST,
) -> DataLoader:
    """Build a data loader as mmengine does, which watches its images.

    Args:
        dataloader (DataLoader | dict): A config as for mmengine's
            ``Runner``, or a data loader, which is returned unchanged.
        seed (int, optional): As for mmengine's ``Runner``.
        diff_rank_seed (bool): As for mmengine's ``Runner``.
        key (str): The key of its config, for messages.
    """
    if isinstance(dataloader, DataLoader):
        return dataloader
    loader = Runner.build_dataloader(
        dict(
            dataloader,
            dataset=dict(type=watched, dataset=dataloader['dataset']),
        ),
        seed,
        diff_rank_seed,
    )
    if loader.batch_sampler is not None:  # Else it does not collate.
        loader.collate_fn = _CollateReadable(loader.collate_fn)
        loader.__class__ = WatchingLoader
        loader.key = key
    return loader


class ReadableBatches:
    """Batches of a loader, which replaces images that cannot be read.

    The following images of the loader replace them. If it has no more
    images, its first ones are used again.

    Args:
        loader (DataLoader): The loader of calibration images.
        count (int): Number of images that are needed.
        max_unreadable (float): Fraction of them, from 0 to 1, that may be
            unreadable. One always may be, unless this is 0.

    Attributes:
        unreadable (dict[str, str]): The problem of each unreadable file.
    """

    def __init__(
        self,
        loader: DataLoader,
        count: int,
        max_unreadable: float = MAX_UNREADABLE,
    ) -> None:
        self.loader, self.count = loader, count
        self.max_unreadable = max_unreadable
        self.unreadable: dict[str, str] = {}

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches for as long as the caller asks for more.

        Raises:
            ValueError: If too many images cannot be read.
        """
        drawn = 0
        more = True
        while more:
            more = False
            for data, bad in self._batches():
                self.unreadable.update(bad)
                drawn += len(bad) + len(data['inputs'] if data else ())
                if drawn >= self.count:
                    self._check(drawn)
                if data is not None:
                    yield data
                    more = bool(self.unreadable)
            self._check(drawn)

    def _batches(self) -> Iterator[CheckedBatch]:
        """Yield each batch once, and its images that cannot be read."""
        if isinstance(self.loader, WatchingLoader):
            yield from self.loader.with_unreadable()
        else:
            for data in self.loader:
                check_inputs(data, CALIBRATION)
                yield data, []

    def _check(self, drawn: int) -> None:
        """Refuse the images if too many of ``drawn`` ones are unreadable."""
        bad = len(self.unreadable)
        allowed = int(self.max_unreadable * self.count)
        if self.max_unreadable > 0:
            allowed = max(allowed, 1)
        if bad > allowed or bad and bad == drawn:
            raise ValueError(
                f'{bad} of {drawn} calibration images cannot be read, and '
                f'test_cfg.calibration.max_unreadable={self.max_unreadable} '
                f'allows {allowed}: {self._names()}. Repair or remove them, '
                'or raise `max_unreadable`'
            )

    def log_unreadable(self) -> None:
        """Warn of the images that could not be read, in all processes."""
        for unreadable in all_gather_object(self.unreadable):
            self.unreadable.update(unreadable)
        count = len(self.unreadable)
        if count:
            images = 'image' if count == 1 else 'images'
            print_log(
                f'{count} calibration {images} cannot be read, and others '
                f'replace them: {self._names()}',
                'current',
                logging.WARNING,
            )

    def _names(self) -> str:
        """Return the names and the problems of the first files."""
        files = [Unreadable(*pair) for pair in self.unreadable.items()]
        more = len(files) - MAX_NAMED
        return ', '.join(map(str, files[:MAX_NAMED])) + (
            f' and {more} more' if more > 0 else ''
        )
