"""Where the activations of all calibration images are held."""

from __future__ import annotations

import ctypes
import errno
import math
import os
import tempfile
import weakref
from collections.abc import Iterator
from math import prod
from typing import IO, Any, Optional

import torch
from torch import Tensor

from ..functional import memory_order
from ..runtime.allocator import give_back_freed_memory

#: Rows of one image that a unit which learns from it has in memory at once:
#: its input and output, both networks', their gradients, and what is between.
ROWS_AT_WORK = 32
#: Bytes held, up to which what is held may lie in memory a second time where
#: there is no limit.
AMPLE = 2**27


class Store:
    """Holds tensors in memory up to a budget, and beyond it in files.

    The files are read and written piece by piece, so that no page of them
    counts as this process' memory, and have no name: whatever ends the
    process, they are gone.

    Args:
        budget (int, optional): Bytes that may be held in memory; by default
            there is no limit.
        folder (str, optional): Where the files lie; by default where the
            system keeps temporary ones.
        at_work (int): Bytes of the budget that are left to the activations
            a unit works on, half of it at the most; more where single images
            are large (:data:`ROWS_AT_WORK`). One image at a time is worked
            on however large it is.
    """

    def __init__(
        self,
        budget: Optional[int] = None,
        folder: Optional[str] = None,
        at_work: int = 0,
    ) -> None:
        self.budget = budget
        self.folder = folder
        self.at_work = at_work
        #: Bytes that columns may take.
        self.max_bytes = (
            float('inf')
            if budget is None
            else budget - min(at_work, budget // 2)
        )
        #: Bytes held in memory now, and the most there ever were.
        self.cached_bytes = self.peak_bytes = 0
        #: Bytes of what is held that lie in memory a second time.
        self.duplicate_bytes = 0
        #: Bytes that were written to files so far.
        self.spilled_bytes = 0

    @property
    def has_ample_memory(self) -> bool:
        """Whether what is held may lie in memory a second time.

        Then nothing has had to go to a file so far, and it is a quarter of
        the room at the most, or :data:`AMPLE` where there is no limit.
        """
        ample = AMPLE if self.budget is None else self.max_bytes / 4
        return not self.spilled_bytes and self.cached_bytes <= ample

    def release_freed_memory(self) -> None:
        """Let the system have what is free, unless there is ample room.

        To fetch it anew, page by page, takes a tenth of a short run.
        """
        if not self.has_ample_memory:
            give_back_freed_memory()

    def allocate(
        self, images: int, example: Tensor, rows_per_image: int = 1
    ) -> CachedTensor:
        """Room for a tensor of all images.

        Args:
            images (int): How many.
            example (Tensor): Some of its rows: they tell type, device, and
                the order of a row's elements in memory.
            rows_per_image (int): Rows of the tensor that belong to one image.
        """
        column = CachedTensor(images, example, rows_per_image)
        if self._has_room(column):
            column.memory = torch.empty(
                images,
                column.elements,
                dtype=column.dtype,
                device=column.device,
            )
            self.cached_bytes += column.nbytes
            self.peak_bytes = max(self.peak_bytes, self.cached_bytes)
            weakref.finalize(column, self._release, column.nbytes)
        else:
            column.file = self._file(column.nbytes)
            self.spilled_bytes += column.nbytes
        return column

    def _has_room(self, column: CachedTensor) -> bool:
        """Whether a column fits, beside what is worked on with its rows."""
        room = self.max_bytes
        if self.budget is not None and self.at_work:
            row = column.nbytes // max(1, column.images)
            room = min(room, self.budget - ROWS_AT_WORK * row)
        return self.cached_bytes + self.duplicate_bytes + column.nbytes <= room

    def _release(self, nbytes: int) -> None:
        self.cached_bytes -= nbytes

    def _file(self, nbytes: int) -> IO[bytes]:
        folder = self.folder or tempfile.gettempdir()
        os.makedirs(folder, exist_ok=True)
        file = tempfile.TemporaryFile(dir=folder)
        try:
            # A full disk shall be an error here, not a crash later.
            os.posix_fallocate(file.fileno(), 0, nbytes)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise OSError(
                errno.ENOSPC,
                f'No room for {nbytes / 2**30:.1f} GiB of activations in '
                f'{folder!r}: raise `test_cfg.calibration.memory`, lower '
                '`test_cfg.calibration.num_images`, or name another '
                '--work-dir',
            ) from error
        return file


class CachedTensor:
    """One tensor, image by image, in memory or in a file.

    A row of it is one image's elements in the order of memory, so that a
    piece comes back with the strides with which it came.
    """

    memory: Optional[Tensor] = None
    file: Optional[IO[bytes]] = None

    def __init__(
        self, images: int, example: Tensor, rows_per_image: int
    ) -> None:
        self.images, self.rows_per_image = images, rows_per_image
        self.shape = tuple(example.shape[1:])
        self.dtype, self.device = example.dtype, example.device
        self.order = memory_order(example[0])
        self.elements = rows_per_image * prod(self.shape)
        self.nbytes = images * self.elements * example.element_size()

    def write(self, start: int, values: Tensor) -> None:
        """Put in the rows of some images.

        Args:
            start (int): The first image.
            values (Tensor): ``rows_per_image`` rows for each image.

        Raises:
            ValueError: If rows of another shape came first.
        """
        if tuple(values.shape[1:]) != self.shape:
            raise ValueError(
                'Calibration images differ in size: activations of shapes '
                f'{sorted([self.shape, tuple(values.shape[1:])])} cannot be '
                'held together. Use a calibration pipeline that gives all '
                'images one size'
            )
        images = len(values) // self.rows_per_image
        rows = values.permute(0, *(d + 1 for d in self.order))
        rows = rows.reshape(images, -1)
        if self.memory is not None:
            self.memory[start : start + images] = rows
        elif rows.numel():
            self._transfer(os.pwritev, rows.cpu().contiguous(), start)

    def take(self, index: Tensor) -> Tensor:
        """A copy of the rows of some images.

        Args:
            index (Tensor): Numbers of images.
        """
        if self.memory is not None:
            index = index.to(self.memory.device)
            return self.unfolded(self.memory.index_select(0, index))
        rows = self._empty(len(index), self.elements)
        for row, image in zip(rows, index.tolist()):
            self._transfer(os.preadv, row, image)
        return self.unfolded(rows)

    def read(self, start: int, stop: int) -> Tensor:
        """A copy of the rows of neighbouring images."""
        rows = self._empty(stop - start, self.elements)
        return self.unfolded(self._load(rows, start))

    def copy_to(self, tensor: Tensor, start: int) -> None:
        """Fill a tensor with the rows of the images from ``start`` on."""
        images = len(tensor) // self.rows_per_image
        rows = tensor.permute(0, *(d + 1 for d in self.order))
        if self.memory is None and rows.is_contiguous():
            self._load(rows.view(images, self.elements), start)
        else:
            tensor.copy_(self.read(start, start + images))

    def pieces(self, size: int) -> Iterator[Tensor]:
        """A copy of the rows of all images, some elements at a time.

        Args:
            size (int): Elements of each image in a piece.
        """
        for start in range(0, self.elements, size):
            stop = min(start + size, self.elements)
            if self.memory is not None:
                yield self.memory[:, start:stop].clone()
                continue
            piece = self._empty(self.images, stop - start)
            for image, row in enumerate(piece):
                self._transfer(os.preadv, row, image, start)
            yield piece.to(self.device)

    def unfolded(self, rows: Tensor) -> Tensor:
        """Rows in the order of memory as tensors of the column's form.

        Args:
            rows (Tensor): N x as many elements as an image has.

        Returns:
            Tensor: N times ``rows_per_image`` rows of the column's shape.
        """
        sizes = [self.shape[d] for d in self.order]
        back = [self.order.index(d) + 1 for d in range(len(self.shape))]
        return rows.to(self.device).view(-1, *sizes).permute(0, *back)

    def _empty(self, images: int, elements: int) -> Tensor:
        """Room for rows, where those that are held lie."""
        where = 'cpu' if self.memory is None else self.memory.device
        return torch.empty(images, elements, dtype=self.dtype, device=where)

    def _load(self, rows: Tensor, start: int) -> Tensor:
        """Fill rows with those of the images from ``start`` on."""
        if self.memory is not None:
            return rows.copy_(self.memory[start : start + len(rows)])
        self._transfer(os.preadv, rows, start)
        return rows

    def _transfer(
        self, system_call: Any, rows: Tensor, image: int, element: int = 0
    ) -> None:
        """Read or write what lies together in the file.

        Args:
            system_call (callable): ``os.preadv`` or ``os.pwritev``.
            rows (Tensor): On the CPU, without gaps; read into or written.
            image (int): Where it begins in the file,
            element (int): and in that image's row.
        """
        file: Any = self.file
        size = rows.element_size()
        # Not by way of NumPy, after which no memory can be given back.
        whole = (ctypes.c_char * (rows.numel() * size)).from_address(
            rows.data_ptr()
        )
        bytes_of_rows = memoryview(whole).cast('B')
        start = (image * self.elements + element) * size
        done = 0
        # The system moves two GiB at a time, at the most.
        while done < len(bytes_of_rows):
            rest = bytes_of_rows[done:]
            moved = system_call(file.fileno(), [rest], start + done)
            if not moved:
                raise OSError(errno.EIO, 'A file of activations was cut off')
            done += moved


class FreeableTensor:
    """A tensor that somebody else holds, and whose content a column has.

    While nobody looks, its memory can be freed. It is left alone where it
    shares its memory, or once it was written to, which nobody knows of one
    that was made in inference mode.

    Args:
        column (CachedTensor): Holds the same values.
        start (int): The tensor's first image there.
        tensor (Tensor): The tensor.
    """

    def __init__(
        self, column: CachedTensor, start: int, tensor: Tensor
    ) -> None:
        self.column = column
        self.start = start
        self.tensor = weakref.ref(tensor)
        self.version = _version(tensor)

    def _unchanged(self) -> Optional[Tensor]:
        """The tensor, if it is alive and nobody has written to it."""
        tensor = self.tensor()
        if tensor is None or _version(tensor) != self.version:
            return None
        return tensor

    @property
    def size(self) -> int:
        """Bytes that can be freed."""
        tensor = self._unchanged()
        if tensor is None:
            return 0
        size = tensor.numel() * tensor.element_size()
        return size if tensor.untyped_storage().nbytes() == size else 0

    def drain(self) -> int:
        """Free the tensor's memory.

        Returns:
            int: Bytes that are free now.
        """
        tensor, size = self._unchanged(), self.size
        if tensor is not None and size:
            tensor.untyped_storage().resize_(0)
        return size

    def refill(self) -> bool:
        """Undo :meth:`drain`.

        Returns:
            bool: Whether the tensor may be drained again.
        """
        tensor = self._unchanged()
        if tensor is None:
            return False
        storage = tensor.untyped_storage()
        if not storage.nbytes():
            storage.resize_(tensor.numel() * tensor.element_size())
            self.column.copy_to(tensor, self.start)
            self.version = _version(tensor)
        return True


def _version(tensor: Tensor) -> float:
    """How often it was written to; NaN, not even itself, if unknown."""
    return math.nan if tensor.is_inference() else tensor._version
