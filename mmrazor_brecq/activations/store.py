"""Cache of the activations of all calibration images."""

from __future__ import annotations

import errno
import os
import tempfile
import weakref
from typing import IO, Optional

import torch
from torch import Tensor

from ..runtime.allocator import give_back_freed_memory
from .cached_tensor import CachedTensor

#: Activations of one image that are in memory while a unit learns from it:
#: input and output of both networks, their gradients, and what is between.
WORKING_COPIES = 32
#: Without a budget, cached bytes up to which the suspended passes may keep
#: their own copies in memory.
AMPLE_BYTES = 2**27


class Store:
    """Cache of tensors: in memory up to a budget, beyond it in files.

    Files are read and written piece by piece, so that they do not count as
    memory of the process. They have no name, so that they are gone however
    the process ends.

    Example:
        >>> store = Store(budget=2**30, folder='work_dirs/run')
        >>> batches = [torch.rand(8, 3, 32, 32) for _ in range(4)]
        >>> images = CachedBatches(batches, [8] * 4, store)

    Args:
        budget (int, optional): Bytes that may be cached in memory. Default:
            no limit.
        folder (str, optional): Folder of the files. Default: the system's
            folder of temporary files.
        working_bytes (int): Bytes of the budget that are reserved for the
            activations that a unit works on, at most half of the budget.
            Large images reserve more (:data:`WORKING_COPIES`), up to the
            whole budget.
    """

    def __init__(
        self,
        budget: Optional[int] = None,
        folder: Optional[str] = None,
        working_bytes: int = 0,
    ) -> None:
        self.budget = budget
        self.folder = folder
        self.working_bytes = working_bytes
        #: Bytes that cached tensors may take in memory.
        self.max_bytes = (
            float('inf')
            if budget is None
            else budget - min(working_bytes, budget // 2)
        )
        #: Bytes cached in memory now, and their largest number so far.
        self.cached_bytes = self.peak_bytes = 0
        #: Bytes in memory of tensors that are cached as well.
        self.duplicate_bytes = 0
        #: Bytes of all files so far.
        self.spilled_bytes = 0

    @property
    def has_ample_memory(self) -> bool:
        """Whether cached tensors may have a second copy in memory.

        That is so if nothing was cached in a file, and the cache takes at
        most a quarter of the memory it may take (:data:`AMPLE_BYTES`
        without a budget).
        """
        ample = AMPLE_BYTES if self.budget is None else self.max_bytes / 4
        return not self.spilled_bytes and self.cached_bytes <= ample

    def release_freed_memory(self) -> None:
        """Return freed memory to the system, unless memory is ample.

        It takes time: the system provides it anew page by page.
        """
        if not self.has_ample_memory:
            give_back_freed_memory()

    def allocate(
        self, images: int, example: Tensor, rows_per_image: int = 1
    ) -> CachedTensor:
        """Return an empty cache for a tensor of all images.

        Args:
            images (int): Number of images.
            example (Tensor): Some rows: they tell type, device, shape and
                the order of elements in memory.
            rows_per_image (int): Rows of the tensor that belong to one
                image.

        Raises:
            OSError: If the disk is too full for a file of this size.
        """
        tensor = CachedTensor(images, example, rows_per_image)
        if self._fits_in_memory(tensor):
            tensor.memory = torch.empty(
                images,
                tensor.elements,
                dtype=tensor.dtype,
                device=tensor.device,
            )
            self.cached_bytes += tensor.nbytes
            self.peak_bytes = max(self.peak_bytes, self.cached_bytes)
            weakref.finalize(tensor, self._release, tensor.nbytes)
        else:
            tensor.file = self._create_file(tensor.nbytes)
            self.spilled_bytes += tensor.nbytes
        return tensor

    def _fits_in_memory(self, tensor: CachedTensor) -> bool:
        """Return whether memory is left for a tensor and for work on it."""
        max_bytes = self.max_bytes
        if self.budget is not None and self.working_bytes:
            bytes_per_image = tensor.nbytes // max(1, tensor.images)
            reserved = WORKING_COPIES * bytes_per_image
            max_bytes = min(max_bytes, self.budget - reserved)
        used = self.cached_bytes + self.duplicate_bytes
        return used + tensor.nbytes <= max_bytes

    def _release(self, nbytes: int) -> None:
        self.cached_bytes -= nbytes

    def _create_file(self, nbytes: int) -> IO[bytes]:
        """Return a file without a name that has ``nbytes`` on the disk."""
        folder = self.folder or tempfile.gettempdir()
        os.makedirs(folder, exist_ok=True)
        file = tempfile.TemporaryFile(dir=folder)
        try:
            # Reserving the blocks now makes a full disk fail here, with a
            # message, and not in the middle of a pass.
            os.posix_fallocate(file.fileno(), 0, nbytes)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise OSError(
                errno.ENOSPC,
                f'No space for {nbytes / 2**30:.1f} GiB of activations in '
                f'{folder!r}: raise `test_cfg.calibration.memory`, lower '
                '`test_cfg.calibration.num_images`, or name another '
                '--work-dir',
            ) from error
        return file
