"""Images without labels."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.dataset import BaseDataset
from mmengine.logging import print_log

from ..config.safe import check_regular
from ..registry import DATASETS
from .readable import EXTENSIONS


# Configs of earlier versions have the second name.
@DATASETS.register_module(name=['UnlabeledImages', 'UnlabelledImages'])
class UnlabeledImages(BaseDataset):
    """All images below a folder, sorted by name, or the images of a list.

    They are enough for calibration. Each sample has ``img_path``, which the
    pipeline reads; use the pipeline of the test images.

    Args:
        data_root (str): The folder.
        ann_file (str): A list of images instead of the whole folder: a text
            file with a path on each line, optionally followed by a label,
            or a COCO JSON. Paths are relative to the list's folder, or to
            the folder beside the list that has its name.
        extensions (list[str]): File name extensions of images, in lower
            case; upper case is accepted too.
        **kwargs: As for :class:`mmengine.dataset.BaseDataset`, such as
            ``pipeline`` and ``indices``.

    Example:
        >>> dataset = dict(
        ...     type='mmrazor_brecq.UnlabeledImages',
        ...     data_root='photos',
        ...     pipeline=test_pipeline,
        ... )
    """

    def __init__(
        self,
        data_root: str,
        extensions: Sequence[str] = EXTENSIONS,
        **kwargs: Any,
    ) -> None:
        self.extensions = tuple(extensions)
        super().__init__(data_root=data_root, **kwargs)

    def load_data_list(self) -> list[dict]:
        """List the images without opening them.

        Raises:
            FileNotFoundError: If there are none.
        """
        if self.ann_file:
            return [dict(img_path=str(path)) for path in self._listed()]
        paths = self._found()
        if not paths:
            folder = Path(self.data_root).absolute()
            reason = '' if folder.is_dir() else ', which is no folder'
            raise FileNotFoundError(
                f'No image below {str(folder)!r}{reason}, expected files that '
                f'end with {", ".join(self.extensions)}: set `data_root` of '
                'the dataset to their folder'
            )
        return [dict(img_path=str(path)) for path in paths]

    def _found(self) -> list[Path]:
        """Return the paths below the folder that have the name of an image."""
        closed: list[OSError] = []
        paths = sorted(
            Path(parent, name)
            for parent, folders, files in os.walk(
                self.data_root, onerror=closed.append
            )
            for name in (*folders, *files)
            if os.path.splitext(name)[1].lower() in self.extensions
        )
        for error in closed if paths else ():
            print_log(
                f'The folder {error.filename!r} cannot be read '
                f'({error.strerror}): calibrates without its images',
                'current',
                logging.WARNING,
            )
        return paths

    def _listed(self) -> list[Path]:
        """Return the paths that the list names.

        Raises:
            FileNotFoundError: If none of the files exists.
            ValueError: If the list is empty or no list.
        """
        file = Path(self.ann_file)
        names = _names_of(file)
        if not names:
            raise ValueError(f'The list {str(file)!r} names no image')
        folders = file.parent, file.with_suffix('')
        for folder in folders:
            if any(os.path.lexists(folder / name) for name in names):
                return [folder / name for name in names]
        raise FileNotFoundError(
            f'{names[0]!r} of the list {str(file)!r} is neither in '
            f'{" nor in ".join(repr(str(f)) for f in folders)}'
        )


def _names_of(file: Path) -> list[str]:
    """Return the names in a list of images.

    Raises:
        ValueError: If it is neither a text file nor a COCO JSON.
    """
    check_regular(str(file), 'a list of images')
    try:
        text = file.read_text('utf-8-sig')
        if file.suffix.lower() != '.json':
            lines = (line.strip() for line in text.splitlines())
            return [re.sub(r'\s+\d+$', '', line) for line in lines if line]
        images = json.loads(text)['images']
        return [str(image['file_name']) for image in images]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise ValueError(
            f'The list {str(file)!r} cannot be read '
            f'({type(error).__name__}: {error}): expected a text with a path '
            "on each line, or a COCO JSON: {'images': [{'file_name': ...}]}"
        ) from error
