"""Whether files are images, told from as little of them as will do."""

from __future__ import annotations

import os
import os.path as osp
import stat
import warnings
from typing import BinaryIO, Optional

from PIL import Image, TiffImagePlugin, UnidentifiedImageError

#: What names of images end with.
EXTENSIONS = (
    *('.jpg', '.jpeg', '.png', '.bmp', '.gif', '.webp', '.tif', '.tiff'),
)
#: Formats that files may have, whichever names they bear.
FORMATS = (
    *('JPEG', 'PNG', 'BMP', 'WEBP', 'TIFF', 'GIF', 'PPM'),
    *('JPEG2000', 'AVIF', 'MPO'),
)
#: Bytes that a file may have.
MOST_BYTES = 2**30
#: Pixels that an image may claim to have, at the most, whatever its file, and
#: for each byte of it. A bomb would fill gigabytes from a few bytes.
MOST_PIXELS, FEW_PIXELS, DENSEST = 2**27, 2**24, 1040
#: The variable, known from OpenCV, that says how many in place of these.
ALLOWS_MORE = 'OPENCV_IO_MAX_IMAGE_PIXELS'
#: A short edge to which a pipeline may enlarge an image.
SHORT_EDGE = 512
#: What whole files end with, or nearly so. Decoders fill up others in gray.
ENDS = dict(JPEG=b'\xff\xd9', MPO=b'\xff\xd9', PNG=b'IEND\xaeB`\x82')
NEARLY = 64


def why_unreadable(path: str) -> Optional[str]:
    """Return what is wrong with the file of an image, None if nothing is seen.

    What is no regular file is not opened. Of others the beginning and the
    end are read, and the whole only where the end looks odd, so that damage
    in the middle is left for the decoder to find. Nothing is said of files
    that this machine does not have, such as those of an object store.

    Args:
        path (str): The file.
    """
    if '://' in path or not osp.lexists(path):
        return None
    try:
        state = os.stat(path)
        if not stat.S_ISREG(state.st_mode):
            return _kind(state.st_mode)
        if not 0 < state.st_size <= MOST_BYTES:
            return f'{state.st_size:,} bytes'
        # Should it have become a pipe by now, this does not wait for it.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        with open(descriptor, 'rb') as file, warnings.catch_warnings():
            # Of what pillow finds large, or odd in its metadata.
            warnings.simplefilter('ignore')
            return _what_is_wrong(file, state.st_size)
    except UnidentifiedImageError:
        if osp.splitext(path)[1].lower() in EXTENSIONS:
            return 'no image of a known format'
        return None  # The pipeline has a reader for it.
    except OSError as error:
        return error.strerror or str(error).partition(' <')[0]
    except Exception as error:  # A decoder raises whatever bytes make of it.
        return f'{type(error).__name__}: {error}'


def _what_is_wrong(file: BinaryIO, size: int) -> Optional[str]:
    """Look into a file of ``size`` bytes."""
    file.seek(max(0, size - NEARLY))
    end = file.read()
    file.seek(0)
    try:
        image = _opened(file)
    except UnidentifiedImageError:
        # One whose kind of pixels pillow does not know.
        if problem := _claims(*_tiff_size(file), size):
            return problem
        return None
    if problem := _claims(image.width, image.height, size):
        return problem
    if ENDS.get(image.format or '', b'') not in end:
        image.load()  # It refuses what is cut short.
    return None


def _opened(file: BinaryIO) -> Image.Image:
    """The header of an image."""
    Image.init()
    known = [name for name in FORMATS if name in Image.OPEN]
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        return Image.open(file, formats=known)
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _claims(width: int, height: int, size: int) -> Optional[str]:
    """What is wrong with width and height, in a file of ``size`` bytes."""
    most = min(MOST_PIXELS, max(FEW_PIXELS, DENSEST * size))
    most = int(os.environ.get(ALLOWS_MORE) or most)
    short, long = sorted((width, height))
    if short < 1:
        return f'{width} x {height} pixels'
    enlarged = long * SHORT_EDGE // short
    if width * height > most:
        claim = ''
    elif enlarged * SHORT_EDGE > max(most, MOST_PIXELS):
        claim = f', which a short edge of {SHORT_EDGE} would make {enlarged:,}'
        claim += f' x {SHORT_EDGE}'
    else:
        return None
    return (
        f'it claims {width:,} x {height:,} pixels in {size:,} bytes{claim}; '
        f'{ALLOWS_MORE} would allow more'
    )


def _tiff_size(file: BinaryIO) -> tuple[int, int]:
    """Width and height of a TIFF, whatever its pixels are.

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
    """Name what is no regular file."""
    for is_one, name in (
        (stat.S_ISDIR, 'a folder'),
        (stat.S_ISFIFO, 'a pipe'),
        (stat.S_ISSOCK, 'a socket'),
    ):
        if is_one(mode):
            return f'{name}, no regular file'
    return 'a device, no regular file'
