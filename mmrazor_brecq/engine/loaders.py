"""Data loaders that name the images that cannot be read."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any, Callable, Optional, Union

from mmengine.dist import all_gather_object
from mmengine.logging import print_log
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from ..datasets import Unreadable, watched

#: The share of calibration images that may be unreadable, by default.
MAX_UNREADABLE = 0.01
#: Files that a message names.
NAMED = 5


class WatchingLoader(DataLoader):
    """Gives batches of images that can be read.

    Whoever iterates over it as over any other counts on all of them, such
    as an evaluation, and is told of the first that cannot be read.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        for data, bad in self.apart():
            if bad:
                raise ValueError(
                    f'The image {bad[0]} cannot be read: mend it, or take it '
                    'out of the data set'
                )
            yield data

    def apart(self) -> Iterator[tuple[Any, list[Unreadable]]]:
        """Yield batches, and what cannot be read of each.

        A batch of which nothing can be read is None.
        """
        yield from super().__iter__()


class _Apart:
    """Collates what can be read of a batch.

    Args:
        collate (callable): That of the loader.
    """

    def __init__(self, collate: Callable[[list], Any]) -> None:
        self.collate = collate

    def __call__(self, items: Sequence) -> tuple[Any, list[Unreadable]]:
        bad = [item for item in items if isinstance(item, Unreadable)]
        good = [item for item in items if not isinstance(item, Unreadable)]
        return (self.collate(good) if good else None), bad


def build_dataloader(
    dataloader: Union[DataLoader, dict],
    seed: Optional[int] = None,
    diff_rank_seed: bool = False,
) -> DataLoader:
    """Build a data loader as mmengine does, of images that are watched.

    Args:
        dataloader (DataLoader | dict): As for mmengine's ``Runner``; what is
            a loader already stays as it is.
        seed (int, optional): Likewise.
        diff_rank_seed (bool): Likewise.
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
    if loader.batch_sampler is not None:  # Else it collates nothing.
        loader.collate_fn = _Apart(loader.collate_fn)
        loader.__class__ = WatchingLoader
    return loader


class ReadableBatches:
    """Batches of a loader, with other images for those that cannot be read.

    They are named, and refused where they are too many. Where the loader
    has no other images left, its first ones come again.

    Args:
        loader (DataLoader): Of calibration images.
        count (int): How many are asked for.
        most (float): Fraction of them that may be unreadable. One always may,
            unless this is 0.

    Attributes:
        unreadable (dict[str, str]): What is wrong, by file.
    """

    def __init__(
        self, loader: DataLoader, count: int, most: float = MAX_UNREADABLE
    ) -> None:
        self.loader, self.count, self.most = loader, count, most
        self.unreadable: dict[str, str] = {}

    def __iter__(self) -> Iterator[Any]:
        """Yield batches, as long as they are asked for.

        Raises:
            ValueError: If too many images cannot be read.
        """
        drawn = 0
        more = True
        while more:
            more = False
            for data, bad in self._drawn():
                self.unreadable.update(bad)
                drawn += len(bad) + (0 if data is None else _size(data))
                if drawn >= self.count:
                    self._judge(drawn)
                if data is not None:
                    yield data
                    more = bool(self.unreadable)
            self._judge(drawn)

    def _drawn(self) -> Iterator[tuple[Any, list[Unreadable]]]:
        if isinstance(self.loader, WatchingLoader):
            yield from self.loader.apart()
        else:
            yield from ((data, []) for data in self.loader)

    def _judge(self, drawn: int) -> None:
        """Refuse the images if too many of ``drawn`` ones are unreadable."""
        bad = len(self.unreadable)
        allowed = max(int(self.most * self.count), int(self.most > 0))
        if bad > allowed or bad and bad == drawn:
            raise ValueError(
                f'{bad} of {drawn} calibration images cannot be read, and '
                f'test_cfg.calibration.max_unreadable={self.most} allows '
                f'{allowed}: {self._named()}. Mend or remove them, or raise '
                '`max_unreadable`'
            )

    def tell(self) -> None:
        """Name what could not be read, in all processes."""
        for found in all_gather_object(self.unreadable):
            self.unreadable.update(found)
        count = len(self.unreadable)
        if count:
            print_log(
                f'{count} calibration image{"s" * (count > 1)} cannot be '
                'read, and others stand in: ' + self._named(),
                'current',
                logging.WARNING,
            )

    def _named(self) -> str:
        files = [Unreadable(*pair) for pair in self.unreadable.items()]
        more = len(files) - NAMED
        return ', '.join(map(str, files[:NAMED])) + (
            f' and {more} more' if more > 0 else ''
        )


def _size(data: Any) -> int:
    """Images of a batch."""
    return len(data['inputs']) if 'inputs' in data else 0
