"""Shows the five best classes of an image.

    python demo/classify.py demo/ankle_boot.png --model quantized.onnx

Needs onnxruntime, numpy and pillow alone: what there is to know of the
model lies in the file's metadata, where tools/export.py put it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import stat
import sys

#: Pixels of an image before and after it is resized, and of one edge.
MOST_PIXELS, LONGEST_EDGE = 2**27, 2**14


def check_regular(path: str, expected: str) -> None:
    """Refuse pipes and devices, which would be waited for."""
    if os.path.exists(path) and not stat.S_ISREG(os.stat(path).st_mode):
        raise SystemExit(f'{path!r} is no regular file: give {expected}')


def open_image(path: str):
    """Open an image, RGB and upright."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    Image.MAX_IMAGE_PIXELS = MOST_PIXELS // 2  # It refuses twice as many.
    check_regular(path, 'an image')
    try:
        image = Image.open(path)
        if image.mode.startswith('I'):  # 16 bits, which it would cut off
            image = image.point(lambda x: x / 256).convert('L')
        image = ImageOps.exif_transpose(image).convert('RGB')
    except FileNotFoundError:
        raise SystemExit(f'No image at {path!r}') from None
    except Image.DecompressionBombError as error:
        raise SystemExit(f'{path!r} is too large an image: {error}') from None
    except (
        *(UnidentifiedImageError, OSError, SyntaxError),
        *(ValueError, EOFError),
    ) as error:
        raise SystemExit(
            f'{path!r} is no image that pillow can read ({error}): give a '
            'PNG, a JPEG or the like'
        ) from None
    return image


def read_image(path: str, size: list, resize: dict):
    """Read an RGB image of the model's size, H x W x 3, from 0 to 255."""
    import numpy as np
    from PIL import Image

    image = open_image(path)
    height, width = size
    if 'edge' in resize:  # the short edge first, then the middle of it
        factor = resize['edge'] / min(image.size)
        scaled = [max(round(x * factor), 1) for x in image.size]
        if math.prod(scaled) > MOST_PIXELS:
            raise SystemExit(
                f'{path!r} of {image.width} x {image.height} would be '
                f'{scaled[0]} x {scaled[1]} with a short edge of '
                f'{resize["edge"]}, expected at most {MOST_PIXELS:,} pixels'
            )
        image = image.resize(scaled, Image.Resampling.BILINEAR)
        left, top = (image.width - width) // 2, (image.height - height) // 2
        image = image.crop((left, top, left + width, top + height))
    else:
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(image)


def to_input(pixels, about: dict):
    """One image as the model takes it: uint8 as it is, or normalized."""
    import numpy as np

    if about['input']['dtype'] == 'uint8':
        return pixels[None]
    normalisation = about.get('normalisation')
    x = pixels.astype(np.float32)
    if normalisation:
        if normalisation['channels'] == 'BGR':
            x = x[..., ::-1]
        x = (x - np.float32(normalisation['mean'])) / np.float32(
            normalisation['std']
        )
    return np.ascontiguousarray(x.transpose(2, 0, 1)[None], np.float32)


def read_model(path: str):
    """A session, and what the file says of itself."""
    import onnxruntime

    check_regular(path, 'a file that tools/export.py wrote')
    session = None
    # x86 CPUs without VNNI saturate without it, and are wrong by points. But
    # there it does not work where layers share their weights.
    for precision in '1', '0':
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.add_session_config_entry(
            'session.x64quantprecision', precision
        )
        try:
            session = onnxruntime.InferenceSession(
                path, options, providers=['CPUExecutionProvider']
            )
            break
        except Exception as error:
            reason = error
    if session is None:
        raise SystemExit(
            f'{path!r} is no model that ONNX Runtime can run: {reason}'
        )
    about = {}
    for key, text in session.get_modelmeta().custom_metadata_map.items():
        try:
            about[key] = json.loads(text)
        except ValueError:
            about[key] = text
    if 'input' not in about:
        raise SystemExit(
            f'{path!r} does not say what images it takes: give a file that '
            'tools/export.py wrote'
        )
    check_about(path, about)
    return session, about


def check_about(path: str, about: dict) -> None:
    """Refuse what a file says of its images before room is made for them."""

    def is_edge(value) -> bool:
        return type(value) is int and 0 < value <= LONGEST_EDGE

    def is_triple(values) -> bool:
        return (
            isinstance(values, list)
            and len(values) == 3
            and all(type(x) in (int, float) for x in values)
            and all(math.isfinite(x) for x in values)
        )

    given = about['input'] if isinstance(about['input'], dict) else {}
    size, resize = given.get('size'), about.get('resize') or {}
    norm = about.get('normalisation')
    checks = {
        'input.size': isinstance(size, list)
        and len(size) == 2
        and all(map(is_edge, size))
        and math.prod(size) <= MOST_PIXELS,
        'input.dtype': given.get('dtype') in ('uint8', 'float32'),
        'resize': isinstance(resize, dict)
        and ('edge' not in resize or is_edge(resize['edge'])),
        'normalisation': norm is None
        or isinstance(norm, dict)
        and is_triple(norm.get('mean'))
        and is_triple(norm.get('std'))
        and all(norm['std'])
        and norm.get('channels') in ('RGB', 'BGR'),
        'classes': isinstance(about.get('classes') or [], list),
    }
    wrong = [name for name, fits in checks.items() if not fits]
    if wrong:
        key, _, inner = wrong[0].partition('.')
        value = given.get(inner) if inner else about.get(key)
        raise SystemExit(
            f'{path!r} has {wrong[0]}={value!r:.80} in its metadata, which '
            f'no image can have (edges of at most {LONGEST_EDGE}): give a '
            'file that tools/export.py wrote'
        )


def count(text: str) -> int:
    """A whole number, 1 or more."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(
            f'{text!r}, expected a whole number, 1 or more'
        )
    return int(text)


def main() -> int:
    """Classify one image and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('image', help='a PNG, a JPEG or the like')
    parser.add_argument('--model', required=True, help='of tools/export.py')
    parser.add_argument('--best', type=count, default=5, help='classes shown')
    args = parser.parse_args()

    try:
        import numpy as np
        import onnxruntime  # noqa: F401
        from PIL import Image  # noqa: F401
    except ImportError as error:
        raise SystemExit(
            f'{error.name} is missing: pip install onnxruntime numpy pillow'
        ) from None
    session, about = read_model(args.model)
    pixels = read_image(
        args.image, about['input']['size'], about.get('resize') or {}
    )
    feed = {session.get_inputs()[0].name: to_input(pixels, about)}
    logits = session.run(None, feed)[-1].reshape(-1).astype(np.float64)
    odds = np.exp(logits - logits.max())
    odds /= odds.sum()
    classes = about.get('classes') or []
    for place in np.argsort(-logits)[: args.best]:
        name = classes[place] if place < len(classes) else f'class {place}'
        print(f'{odds[place]:7.2%}  {name}')
    return 0


if __name__ == '__main__':
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
