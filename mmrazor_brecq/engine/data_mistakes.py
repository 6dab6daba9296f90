"""Explain errors of data sets and metrics as mistakes in a config."""

from __future__ import annotations

import os.path as osp
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any, Optional
from urllib.error import URLError

from mmengine.config import Config
from mmengine.evaluator import Evaluator

from ..config.load import datasets_of
from ..config.recipe import NO_EVAL_CURE
from .folders import missing_folders, remove_empty
from .loaders import CALIBRATION, TEST

#: Methods of a data set that read its annotations.
READING = ('load_data_list', 'full_init')


@contextmanager
def reading_data(cfg: Config) -> Iterator[None]:
    """Return a context in which data sets that cannot be read are named.

    Empty folders that a failed download leaves are removed. Errors of this
    package, and of files that are missing, are raised unchanged.

    Args:
        cfg (Config): The config from which data sets are built.

    Raises:
        ConnectionError: If a data set cannot be downloaded.
        ValueError: If the annotations of a data set cannot be read.
    """
    folders = {
        f'{key}.{name}={value!r}': (path, missing_folders(path))
        for loader in (TEST, CALIBRATION)
        for key, dataset in datasets_of(cfg, loader)
        for name, value, path in _folders(dataset)
    }
    try:
        yield
    except Exception as error:
        for _, missing in folders.values():
            remove_empty(missing)
        if isinstance(error, (URLError, ConnectionError, TimeoutError)):
            keys = [key for key, (_, missing) in folders.items() if missing]
            reason = getattr(error, 'reason', error)
            raise ConnectionError(
                f'{" and ".join(keys or folders)} cannot be downloaded '
                f'({reason}): put the data set there by hand, or name its '
                'folder with --cfg-options, for each of these keys'
            ) from error
        key = _unreadable(error)
        if key is None or isinstance(error, FileNotFoundError):
            raise
        raise ValueError(
            f'{key}.dataset cannot be read ({_in_short(error)}): its files '
            'are not as its type expects them, such as labels in `ann_file` '
            'or a subfolder for each class; correct its paths'
            + (f', or {NO_EVAL_CURE}' if key == TEST else '')
        ) from error


@contextmanager
def measuring() -> Iterator[None]:
    """Return a context in which metrics without labels are explained.

    Raises:
        ValueError: If an evaluator fails and its images have no labels, or
            looks for a class that its annotations do not have.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, (IndexError, KeyError)) and any(
            isinstance(frame.f_locals.get('self'), Evaluator)
            and frame.f_code.co_name == 'evaluate'
            for frame in _frames(error)
        ):
            raise ValueError(
                f'`test_evaluator` cannot measure ({_in_short(error)}): the '
                'classes of its annotations are probably not those of the '
                f'network; correct `metainfo` and `ann_file` of {TEST}.'
                f'dataset and of `test_evaluator`, or {NO_EVAL_CURE}'
            ) from error
        samples = next(
            (
                frame.f_locals.get('_data_samples')
                for frame in _frames(error)
                if isinstance(frame.f_locals.get('self'), Evaluator)
            ),
            None,
        )
        first = samples[0] if samples else None
        if not isinstance(first, Mapping) or any(
            str(key).startswith('gt_') for key in first
        ):
            raise
        raise ValueError(
            f'The images of {TEST}.dataset have no labels, which '
            f'`test_evaluator` needs ({_in_short(error)}): name labeled '
            f'images, or {NO_EVAL_CURE}'
        ) from error


def check_measured(metrics: Mapping[str, float]) -> None:
    """Refuse metrics that found nothing to compare predictions with.

    Args:
        metrics (dict[str, float]): All metrics of the float network.

    Raises:
        ValueError: If all are NaN or -1, which is COCO's word for no box.
    """
    if metrics and all(x != x or x == -1 for x in metrics.values()):
        name, value = next(iter(metrics.items()))
        raise ValueError(
            f'`test_evaluator` finds no labels for the images of '
            f'{TEST}.dataset ({name} is {value:g}): name annotations of '
            f'these images, or {NO_EVAL_CURE}'
        )


def _folders(dataset: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield name, value and path of the folders that a data set names."""
    root = dataset.get('data_root') or ''
    for name in ('data_root', 'data_prefix'):
        value = dataset.get(name)
        if isinstance(value, str) and value and '://' not in root + value:
            path = value if name == 'data_root' else osp.join(root, value)
            yield name, value, osp.expanduser(path)


def _unreadable(error: BaseException) -> Optional[str]:
    """Return the key of the loader whose data set raised an error.

    None if no data set did, or one of this package, whose messages name
    their cures.
    """
    frames = list(_frames(error))
    ours = frames[-1].f_globals.get('__name__', '').split('.')[0]
    reads = any(frame.f_code.co_name in READING for frame in frames)
    if not reads or ours == __name__.split('.')[0]:
        return None
    return next(
        (
            frame.f_locals['key']
            for frame in frames
            if frame.f_code.co_name == 'build_dataloader'
            and 'key' in frame.f_locals
        ),
        None,
    )


def _frames(error: BaseException) -> Iterator[FrameType]:
    return (frame for frame, _ in traceback.walk_tb(error.__traceback__))


def _in_short(error: BaseException) -> str:
    """Return the type and the first line of an error."""
    first = str(error).partition('\n')[0][:300]
    return f'{type(error).__name__}: {first}'
