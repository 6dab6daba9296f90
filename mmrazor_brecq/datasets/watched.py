"""A data set that replaces unreadable images by the reason."""

from __future__ import annotations

import traceback
from typing import Any, NamedTuple, Optional

from mmengine.dataset import Compose
from mmengine.registry import DATASETS
from torch.utils.data import Dataset

from .readable import why_unreadable


class Unreadable(NamedTuple):
    """The sample of an image that cannot be read.

    Attributes:
        path (str): Its file.
        why (str): The reason.
    """

    path: str
    why: str

    def __str__(self) -> str:
        return f'{self.path!r} ({self.why})'


class WatchedImages(Dataset):
    """A data set that returns :class:`Unreadable` for unreadable images.

    All other attributes are those of the wrapped data set.

    Args:
        dataset (Dataset): A data set whose ``get_data_info`` has
            ``img_path``, as those of OpenMMLab have.
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
                why = _reason_of_reader(error)
                if why is None and _lacks_image(error):
                    # Whoever collates this misses `inputs`, and knows the
                    # key of the pipeline.
                    return dict.fromkeys(self.dataset.get_data_info(idx), 0)
                if why is None:  # The file is not at fault.
                    raise
        return Unreadable(path, why)


def watched(dataset: Any) -> Any:
    """Wrap a data set in :class:`WatchedImages`, if it names its files.

    Args:
        dataset (Dataset | dict): The data set, or its config.
    """
    if isinstance(dataset, dict):
        dataset = DATASETS.build(dataset)
    if hasattr(dataset, 'get_data_info'):
        return WatchedImages(dataset)
    return dataset


def _reason_of_reader(error: BaseException) -> Optional[str]:
    """Return the message of an error that a loading transform raised.

    In OpenMMLab the names of these begin with ``Load``, such as
    ``LoadImageFromFile``.

    Args:
        error (BaseException): Error of a pipeline.

    Returns:
        str, optional: None if another transform raised it.
    """
    for frame, _ in traceback.walk_tb(error.__traceback__):
        kind = type(frame.f_locals.get('self')).__name__
        if kind.startswith('Load') and 'Annotation' not in kind:
            return _message(error)
    return None


def _lacks_image(error: BaseException) -> bool:
    """Return whether a transform failed since none before loads an image.

    Args:
        error (BaseException): Error of a pipeline.
    """
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if isinstance(frame.f_locals.get('self'), Compose):
            data = frame.f_locals.get('data')
            return 'img' in str(error) and 'img' not in (data or ())
    return False


def _message(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, AssertionError):  # mmcv's, which repeats the path.
        return 'it cannot be decoded'
    first = str(error).partition('\n')[0]
    return f'{type(error).__name__}: {first}'[:300]
