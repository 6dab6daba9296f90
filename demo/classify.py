"""Shows the five best classes of an image.

    python demo/classify.py demo/ankle_boot.png --model quantized.onnx

Needs onnxruntime, numpy and pillow alone: what there is to know of the
model lies in the file's metadata, where tools/export.py put it.
"""

from __future__ import annotations

import argparse
import json
import sys


def read_image(path: str, size: list, resize: dict):
    """An RGB image of the model's size, H x W x 3, as numbers 0 to 255."""
    import numpy as np
    from PIL import Image, UnidentifiedImageError

    try:
        image = Image.open(path).convert('RGB')
    except FileNotFoundError:
        raise SystemExit(f'No image at {path!r}') from None
    except (UnidentifiedImageError, OSError) as error:
        raise SystemExit(
            f'{path!r} is no image that pillow can read ({error}): give a '
            'PNG, a JPEG or the like'
        ) from None
    height, width = size
    if 'edge' in resize:  # the short edge first, then the middle of it
        factor = resize['edge'] / min(image.size)
        image = image.resize(
            [max(round(x * factor), 1) for x in image.size],
            Image.Resampling.BILINEAR,
        )
        left, top = (image.width - width) // 2, (image.height - height) // 2
        image = image.crop((left, top, left + width, top + height))
    else:
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(image)


def to_input(pixels, about: dict):
    """One image as the model takes it: uint8 as it is, or normalised."""
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

    options = onnxruntime.SessionOptions()
    # x86 CPUs without VNNI saturate without it, and are wrong by points.
    options.add_session_config_entry('session.x64quantprecision', '1')
    try:
        session = onnxruntime.InferenceSession(
            path, options, providers=['CPUExecutionProvider']
        )
    except Exception as error:
        raise SystemExit(
            f'{path!r} is no model that ONNX Runtime can run: {error}'
        ) from None
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
    return session, about


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
        args.image, about['input']['size'], about.get('resize', {})
    )
    feed = {session.get_inputs()[0].name: to_input(pixels, about)}
    logits = session.run(None, feed)[-1].reshape(-1).astype(np.float64)
    odds = np.exp(logits - logits.max())
    odds /= odds.sum()
    classes = about.get('classes', [])
    for place in np.argsort(-logits)[: args.best]:
        name = classes[place] if place < len(classes) else f'class {place}'
        print(f'{odds[place]:7.2%}  {name}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
