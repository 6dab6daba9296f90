"""Images that nobody has labelled."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.dataset import BaseDataset

from ..registry import DATASETS

#: What names of images end with.
EXTENSIONS = ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff')


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
        """Look for them.

        Raises:
            FileNotFoundError: If there are none.
        """
        if self.ann_file:
            return [dict(img_path=str(path)) for path in self._listed()]
        paths = sorted(
            path
            for path in Path(self.data_root).rglob('*')
            if path.suffix.lower() in self.extensions
        )
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

    def _listed(self) -> list[Path]:
        """Return the paths that the list names.

        Raises:
            FileNotFoundError: If the first of them is not there.
            ValueError: If the list names none.
        """
        file = Path(self.ann_file)
        text = file.read_text()
        if file.suffix.lower() == '.json':
            names = [
                image['file_name'] for image in json.loads(text)['images']
            ]
        else:
            lines = (line.strip() for line in text.splitlines())
            names = [re.sub(r'\s+\d+$', '', line) for line in lines if line]
        if not names:
            raise ValueError(f'The list {str(file)!r} names no image')
        folders = file.parent, file.with_suffix('')
        for folder in folders:
            if (folder / names[0]).exists():
                return [folder / name for name in names]
        raise FileNotFoundError(
            f'{names[0]!r} of the list {str(file)!r} is neither in '
            f'{" nor in ".join(repr(str(f)) for f in folders)}'
        )
