"""Images that nobody has labelled."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.dataset import BaseDataset

from ..registry import DATASETS

#: What names of images end with.
EXTENSIONS = ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff')


@DATASETS.register_module()
class UnlabelledImages(BaseDataset):
    """All images below a folder, in the order of their names.

    Enough to calibrate on. Every sample has ``img_path``; the pipeline, that
    of the test images, reads it.

    Args:
        data_root (str): The folder.
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
