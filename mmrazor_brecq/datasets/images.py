"""Images that nobody has labelled."""

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


@DATASETS.register_module()
class UnlabelledImages(BaseDataset):
    """All images below a folder, in the order of their names, or of a list.

    Enough to calibrate on. Every sample has ``img_path``; the pipeline, that
    of the test images, reads it.

    Args:
        data_root (str): The folder.
        ann_file (str): A list of images in place of the whole folder: a
            text file with a path on each line (a label may follow it), or a
            COCO JSON. Paths start at the list's folder, or at the folder
            beside the list that has its name.
        extensions (list[str]): What names of images end with, in small
            letters; those in capitals are taken, too.
        **kwargs: As for :class:`mmengine.dataset.BaseDataset`, such as
            ``pipeline`` and ``indices``.
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
        """Look for them; what their files hold shows when they are loaded.

        Raises:
            FileNotFoundError: If there are none.
        """
        if self.ann_file:
            return [dict(img_path=str(path)) for path in self._listed()]
        paths = self._found()
        if not paths:
            folder = Path(self.data_root).absolute()
            raise FileNotFoundError(
                f'No image below {str(folder)!r}'
                + (not folder.is_dir()) * ', which is no folder'
                + ', expected files that end '
                f'with {", ".join(self.extensions)}: set `data_root` of the '
                'dataset to their folder'
            )
        return [dict(img_path=str(path)) for path in paths]

    def _found(self) -> list[Path]:
        """Return what has the name of an image below the folder."""
        closed: list[OSError] = []
        paths = sorted(
            Path(place, name)
            for place, folders, files in os.walk(
                self.data_root, onerror=closed.append
            )
            for name in (*folders, *files)
            if os.path.splitext(name)[1].lower() in self.extensions
        )
        for error in closed if paths else ():
            print_log(
                f'The folder {error.filename!r} cannot be looked into '
                f'({error.strerror}): calibrates without what lies in it',
                'current',
                logging.WARNING,
            )
        return paths

    def _listed(self) -> list[Path]:
        """Return the paths that the list names.

        Raises:
            FileNotFoundError: If none of them is there.
            ValueError: If the list names none, or is none.
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
    """Read the names that a list holds.

    Raises:
        ValueError: If it is neither a text nor a COCO JSON.
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
