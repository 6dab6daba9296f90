"""Finds unreadable image files while reading as little as possible."""

from __future__ import annotations

import os
import os.path as osp
import stat
import warnings
from typing import BinaryIO, Optional

from PIL import Image, TiffImagePlugin, UnidentifiedImageError

#: File name extensions of images.
EXTENSIONS = (
    *('.jpg', '.jpeg', '.png', '.bmp', '.gif', '.webp', '.tif', '.tiff'),
)
#: Formats that are recognized, whatever the file is called.
FORMATS = (
    *('JPEG', 'PNG', 'BMP', 'WEBP', 'TIFF', 'GIF', 'PPM'),
    *('JPEG2000', 'AVIF', 'MPO'),
)
#: Largest file, in bytes.
MAX_BYTES = 2**30
#: Largest image, in pixels; the size up to which no image is suspicious; and
#: the most pixels for each byte of the file of a larger one. A decompression
#: bomb would fill gigabytes from a few bytes.
MAX_PIXELS, FEW_PIXELS, MAX_PIXELS_PER_BYTE = 2**27, 2**24, 1040
#: The environment variable, known from OpenCV, that overrides these limits.
ALLOWS_MORE = 'OPENCV_IO_MAX_IMAGE_PIXELS'
#: Short edge to which a pipeline may enlarge an image.
SHORT_EDGE = 512
#: Last bytes of complete files. Decoders fill incomplete ones with gray.
ENDS = dict(JPEG=b'\xff\xd9', MPO=b'\xff\xd9', PNG=b'IEND\xaeB`\x82')
NEARLY = 64


def why_unreadable(path: str) -> Optional[str]:
    """Return why the file of an image cannot be read.

    Only regular files are opened. Their beginning and end are read, and the
    rest only if the end looks incomplete, so that damage in the middle is
    left to the decoder. Files that are not on this machine, such as those
    of an object store, are not examined.

    Args:
        path (str): The file.

    Returns:
        str, optional: The reason, None if no problem is found.
    """
    if '://' in path or not osp.lexists(path):
        return None
    try:
        state = os.stat(path)
        if not stat.S_ISREG(state.st_mode):
            return _kind(state.st_mode)
        if not 0 < state.st_size <= MAX_BYTES:
            return f'{state.st_size:,} bytes'
        # Does not block, should the file be replaced by a pipe meanwhile.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        with open(descriptor, 'rb') as file, warnings.catch_warnings():
            # Pillow warns of large images and odd metadata.
            warnings.simplefilter('ignore')
            return _what_is_wrong(file, state.st_size)
    except UnidentifiedImageError:
        if osp.splitext(path)[1].lower() in EXTENSIONS:
            return 'no image of a known format'
        return None  # The pipeline may have a reader for it.
    except OSError as error:
        return error.strerror or str(error).partition(' <')[0]
    except Exception as error:  # Decoders raise errors of any kind.
        return f'{type(error).__name__}: {error}'


def _what_is_wrong(file: BinaryIO, size: int) -> Optional[str]:
    """Return what is wrong with an open file of ``size`` bytes."""
    file.seek(max(0, size - NEARLY))
    end = file.read()
    file.seek(0)
    try:
        image = _opened(file)
    except UnidentifiedImageError:
        # Perhaps a TIFF whose kind of pixels pillow does not know.
        if problem := _claims(*_tiff_size(file), size):
            return problem
        return None
    if problem := _claims(image.width, image.height, size):
        return problem
    if ENDS.get(image.format or '', b'') not in end:
        image.load()  # Raises an error if the file is truncated.
    return None


def _opened(file: BinaryIO) -> Image.Image:
    """Return an image of which only the header is read."""
    Image.init()
    known = [name for name in FORMATS if name in Image.OPEN]
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        return Image.open(file, formats=known)
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _claims(width: int, height: int, size: int) -> Optional[str]:
    """Return what is wrong with a size, in a file of ``size`` bytes."""
    most = min(MAX_PIXELS, max(FEW_PIXELS, MAX_PIXELS_PER_BYTE * size))
    most = int(os.environ.get(ALLOWS_MORE) or most)
    short, long = sorted((width, height))
    if short < 1:
        return f'{width} x {height} pixels'
    enlarged = long * SHORT_EDGE // short
    if width * height > most:
        claim = ''
    elif enlarged * SHORT_EDGE > max(most, MAX_PIXELS):
        claim = f', which a short edge of {SHORT_EDGE} would make {enlarged:,}'
        claim += f' x {SHORT_EDGE}'
    else:
        return None
    return (
        f'it claims {width:,} x {height:,} pixels in {size:,} bytes{claim}; '
        f'{ALLOWS_MORE} would allow more'
    )


def _tiff_size(file: BinaryIO) -> tuple[int, int]:
    """Return width and height of a TIFF, whatever its pixels are.

    Raises:
        UnidentifiedImageError: If it is none.
    """
    file.seek(0)
    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(file.read(8))
        file.seek(tags.next)
        tags.load(file)
        return int(tags[256]), int(tags[257])
    except Exception as error:
        raise UnidentifiedImageError('no TIFF') from error


def _kind(mode: int) -> str:
    """Return a name for what is no regular file."""
    for is_one, name in (
        (stat.S_ISDIR, 'a folder'),
        (stat.S_ISFIFO, 'a pipe'),
        (stat.S_ISSOCK, 'a socket'),
    ):
        if is_one(mode):
            return f'{name}, no regular file'
    return 'a device, no regular file'
