"""A data set that replaces unreadable images by the reason."""

from __future__ import annotations

import logging
import traceback
from typing import Any, NamedTuple, Optional

from mmengine.dataset import Compose
from mmengine.logging import print_log
from mmengine.registry import DATASETS
from torch.utils.data import Dataset

from .masks import IGNORED, unknown_values, why_unfit
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
        self.warned = False

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
                sample = self.dataset[idx]
            except Exception as error:
                why = _reason_of_reader(error)
                if why is None and _lacks_image(error):
                    # Whoever collates this misses `inputs`, and knows the
                    # key of the pipeline.
                    return dict.fromkeys(self.dataset.get_data_info(idx), 0)
                if why is None and _loads_annotations(error):
                    file = getattr(error, 'filename', None)
                    why = _message(error) + (f': {file!r}' if file else '')
                    raise _unlabeled(path, why) from error
                if why is None:  # The file is not at fault.
                    raise
            else:
                self._check_mask(path, sample)
                return sample
        return Unreadable(path, why)

    def _check_mask(self, path: str, sample: Any) -> None:
        """Refuse a mask that does not fit, and warn once of its values."""
        why = why_unfit(sample)
        if why is not None:
            raise _unlabeled(path, why)
        classes = (getattr(self.dataset, 'metainfo', None) or {}).get(
            'classes'
        )
        if not classes or self.warned:
            return
        values = unknown_values(sample, len(classes))
        if values:
            self.warned = True
            print_log(
                f'The mask of {path!r} has pixels of {values[:5]}, and the '
                f'data set {len(classes)} classes, 0 to {len(classes) - 1} '
                f'(and {IGNORED}, which does not count): they count as errors',
                'current',
                logging.WARNING,
            )


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


def _loads_annotations(error: BaseException) -> bool:
    """Return whether a transform failed that loads annotations."""
    return any(
        type(frame.f_locals.get('self')).__name__ == 'LoadAnnotations'
        for frame, _ in traceback.walk_tb(error.__traceback__)
    )


def _unlabeled(path: str, why: str) -> ValueError:
    """Return the error of an image whose annotations cannot be used."""
    return ValueError(
        f'The annotations of {path!r} cannot be used ({why}): mend them, or '
        'add --no-eval to quantize without measuring the accuracy'
    )


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
