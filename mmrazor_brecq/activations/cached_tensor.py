"""One activation tensor of all calibration images, in memory or in a file."""

from __future__ import annotations

import ctypes
import errno
import math
import os
import weakref
from collections.abc import Iterator
from math import prod
from typing import IO, Callable, Optional

import torch
from torch import Tensor

from ..functional import memory_order

#: ``os.preadv`` or ``os.pwritev``: file descriptor, buffers and offset to
#: the number of bytes that were moved.
Transfer = Callable[[int, list[memoryview], int], int]


class CachedTensor:
    """One tensor of all images, cached in memory or in a file.

    The elements of an image are cached in their order in memory, so that
    images are returned with the strides with which they came.
    :meth:`Store.allocate` makes it, and gives it memory or a file.

    Args:
        images (int): Number of images.
        example (Tensor): Some rows: they tell type, device, shape and the
            order of elements in memory.
        rows_per_image (int): Rows of the tensor that belong to one image.
    """

    memory: Optional[Tensor] = None
    file: Optional[IO[bytes]] = None

    def __init__(
        self, images: int, example: Tensor, rows_per_image: int
    ) -> None:
        self.images = images
        self.rows_per_image = rows_per_image
        self.shape = tuple(example.shape[1:])
        self.dtype, self.device = example.dtype, example.device
        self.order = memory_order(example[0])
        #: Elements of one image.
        self.elements = rows_per_image * prod(self.shape)
        self.nbytes = images * self.elements * example.element_size()

    def write(self, start: int, values: Tensor) -> None:
        """Cache the rows of some images.

        Args:
            start (int): Index of the first image.
            values (Tensor): (n * ``rows_per_image``) x ``shape``, for n
                images.

        Raises:
            ValueError: If rows of another shape came first.
        """
        if tuple(values.shape[1:]) != self.shape:
            raise ValueError(
                'Calibration images differ in size: activations of shapes '
                f'{sorted([self.shape, tuple(values.shape[1:])])} cannot be '
                'cached together. Use a calibration pipeline that gives all '
                'images one size'
            )
        images = len(values) // self.rows_per_image
        elements = self._in_memory_order(values).reshape(images, -1)
        if self.memory is not None:
            self.memory[start : start + images] = elements
        elif elements.numel():
            self._transfer(os.pwritev, elements.cpu().contiguous(), start)

    def take(self, index: Tensor) -> Tensor:
        """Return a copy of the rows of some images.

        Args:
            index (Tensor): Indices of the images.
        """
        if self.memory is not None:
            index = index.to(self.memory.device)
            return self.from_elements(self.memory.index_select(0, index))
        found = self._empty(len(index), self.elements)
        for row, image in zip(found, index.tolist()):
            self._transfer(os.preadv, row, image)
        return self.from_elements(found)

    def read(self, start: int, stop: int) -> Tensor:
        """Return a copy of the rows of the images ``start`` to ``stop``."""
        elements = self._empty(stop - start, self.elements)
        return self.from_elements(self._load(elements, start))

    def copy_to(self, tensor: Tensor, start: int) -> None:
        """Fill a tensor with the rows of the images from ``start`` on."""
        images = len(tensor) // self.rows_per_image
        values = self._in_memory_order(tensor)
        if self.memory is None and values.is_contiguous():
            self._load(values.view(images, self.elements), start)
        else:
            tensor.copy_(self.read(start, start + images))

    def pieces(self, size: int) -> Iterator[Tensor]:
        """Yield copies of a few elements of all images at a time.

        Args:
            size (int): Elements of each image in a piece.

        Yields:
            Tensor: ``images`` x ``size``, the last one smaller.
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

    def from_elements(self, elements: Tensor) -> Tensor:
        """Return elements of images as a tensor of the cached shape.

        Args:
            elements (Tensor): n x ``elements`` of n images, in the order of
                memory.

        Returns:
            Tensor: (n * ``rows_per_image``) x ``shape``.
        """
        sizes = [self.shape[d] for d in self.order]
        back = [self.order.index(d) + 1 for d in range(len(self.shape))]
        return elements.to(self.device).view(-1, *sizes).permute(0, *back)

    def _in_memory_order(self, values: Tensor) -> Tensor:
        """Permute the dimensions of rows to their order in memory."""
        return values.permute(0, *(d + 1 for d in self.order))

    def _empty(self, images: int, elements: int) -> Tensor:
        """Return an uninitialized tensor on the device of the cache."""
        device = 'cpu' if self.memory is None else self.memory.device
        return torch.empty(images, elements, dtype=self.dtype, device=device)

    def _load(self, elements: Tensor, start: int) -> Tensor:
        """Fill a tensor with the elements of the images from ``start`` on."""
        if self.memory is not None:
            stop = start + len(elements)
            return elements.copy_(self.memory[start:stop])
        self._transfer(os.preadv, elements, start)
        return elements

    def _transfer(
        self,
        system_call: Transfer,
        values: Tensor,
        image: int,
        element: int = 0,
    ) -> None:
        """Read or write one contiguous piece of the file.

        Args:
            system_call (callable): ``os.preadv`` or ``os.pwritev``.
            values (Tensor): Contiguous, on the CPU: read into or written.
            image (int): The image at which the piece begins in the file.
            element (int): The element of that image at which it begins.
        """
        assert self.file is not None
        size = values.element_size()
        # NumPy would share the memory, which could then never be freed.
        content = (ctypes.c_char * (values.numel() * size)).from_address(
            values.data_ptr()
        )
        buffer = memoryview(content).cast('B')
        start = (image * self.elements + element) * size
        done = 0
        # The system moves at most 2 GiB in one call.
        while done < len(buffer):
            moved = system_call(
                self.file.fileno(), [buffer[done:]], start + done
            )
            if not moved:
                raise OSError(errno.EIO, 'A file of activations was cut off')
            done += moved


class FreeableTensor:
    """A tensor of somebody else whose values are cached, too.

    Its memory can be freed while nobody reads it, and is filled again from
    the cache. It is left alone if it shares its memory with another tensor,
    if somebody wrote to it after it was cached, and if it was made in
    inference mode, which does not count writes.

    Args:
        cached (CachedTensor): Caches the same values.
        start (int): Index there of the tensor's first image.
        tensor (Tensor): The tensor; only a weak reference to it is kept.
    """

    def __init__(
        self, cached: CachedTensor, start: int, tensor: Tensor
    ) -> None:
        self.cached = cached
        self.start = start
        self.tensor = weakref.ref(tensor)
        self.version = _version(tensor)

    def _unchanged(self) -> Optional[Tensor]:
        """Return the tensor if it is alive and nobody has written to it."""
        tensor = self.tensor()
        if tensor is None or _version(tensor) != self.version:
            return None
        return tensor

    @property
    def nbytes(self) -> int:
        """Bytes that can be freed."""
        tensor = self._unchanged()
        if tensor is None:
            return 0
        nbytes = tensor.numel() * tensor.element_size()
        return nbytes if tensor.untyped_storage().nbytes() == nbytes else 0

    def free(self) -> int:
        """Free the tensor's memory.

        Returns:
            int: Bytes that were freed.
        """
        tensor, nbytes = self._unchanged(), self.nbytes
        if tensor is not None and nbytes:
            tensor.untyped_storage().resize_(0)
        return nbytes

    def restore(self) -> bool:
        """Fill the tensor again from the cache, if :meth:`free` emptied it.

        Returns:
            bool: Whether the tensor may be freed again.
        """
        tensor = self._unchanged()
        if tensor is None:
            return False
        storage = tensor.untyped_storage()
        if not storage.nbytes():
            storage.resize_(tensor.numel() * tensor.element_size())
            self.cached.copy_to(tensor, self.start)
            self.version = _version(tensor)
        return True


def _version(tensor: Tensor) -> float:
    """Return how often a tensor was written to, or NaN if that is unknown.

    NaN does not equal itself, so such a tensor always counts as changed.
    """
    return math.nan if tensor.is_inference() else tensor._version
