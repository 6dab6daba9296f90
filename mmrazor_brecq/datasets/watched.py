"""A data set that tells images that cannot be read from its own mistakes."""

from __future__ import annotations

import traceback
from typing import Any, NamedTuple, Optional

from mmengine.registry import DATASETS
from torch.utils.data import Dataset

from .readable import why_unreadable


class Unreadable(NamedTuple):
    """What stands in the place of an image that cannot be read.

    Attributes:
        path (str): Its file.
        why (str): What is wrong with it.
    """

    path: str
    why: str

    def __str__(self) -> str:
        return f'{self.path!r} ({self.why})'


class WatchedImages(Dataset):
    """Gives an :class:`Unreadable` in the place of what cannot be read.

    In all else it is the data set that it watches.

    Args:
        dataset (Dataset): One that tells the ``img_path`` of its samples, as
            those of OpenMMLab do.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getattr__(self, name: str) -> Any:
        if name == 'dataset' or name.startswith('__'):
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, idx: int) -> Any:
        path = self.dataset.get_data_info(idx).get('img_path')
        if not isinstance(path, str):  # An image in memory, or several.
            return self.dataset[idx]
        why = why_unreadable(path)
        if why is None:
            try:
                return self.dataset[idx]
            except Exception as error:
                why = _of_reader(error)
                if why is None:  # The file is not at fault.
                    raise
        return Unreadable(path, why)


def watched(dataset: Any) -> Any:
    """Watch a data set, if it tells the files of its images.

    Args:
        dataset (Dataset | dict): It, or its config.
    """
    if isinstance(dataset, dict):
        dataset = DATASETS.build(dataset)
    if hasattr(dataset, 'get_data_info'):
        return WatchedImages(dataset)
    return dataset


def _of_reader(error: BaseException) -> Optional[str]:
    """Return what an error says, if a transform raised it that loads images.

    Such as ``LoadImageFromFile``: their names begin that way in all of
    OpenMMLab.

    Args:
        error (BaseException): That of a pipeline.
    """
    for frame, _ in traceback.walk_tb(error.__traceback__):
        kind = type(frame.f_locals.get('self')).__name__
        if kind.startswith('Load') and 'Annotation' not in kind:
            return _said(error)
    return None


def _said(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, AssertionError):  # mmcv's, which repeats the path.
        return 'it cannot be decoded'
    first = str(error).partition('\n')[0]
    return f'{type(error).__name__}: {first}'[:300]
