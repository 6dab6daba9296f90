"""Draws the boxes that a detector finds in an image.

    python demo/detect.py IMAGE --model quantized.onnx

The model is one that tools/export.py wrote with --with-postprocess. Needs
onnxruntime, numpy and pillow alone: what there is to know of the model lies
in the file's metadata.
"""

from __future__ import annotations

import argparse
import os
import sys

from classify import check_regular, open_image, read_model, to_input

#: Outputs of a file that has boxes.
OUTPUTS = ['boxes', 'scores', 'labels']


def fit(image, size: list, resize: dict):
    """Fit an image into the model's size.

    Returns:
        tuple: H x W x 3 pixels, and the factors by which its width and its
        height became smaller.
    """
    import numpy as np
    from PIL import Image

    height, width = size
    factors = width / image.width, height / image.height
    if resize.get('keep_ratio'):
        most = resize.get('size') or size
        long, short = max(image.size), min(image.size)
        factor = min(max(most) / long, min(most) / short, *factors)
        factors = factor, factor
    scaled = [
        max(min(round(edge * factor), most), 1)
        for edge, factor, most in zip(image.size, factors, (width, height))
    ]
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[:] = np.rint(np.clip(resize.get('pad') or [0, 0, 0], 0, 255))
    resized = image.resize(scaled, Image.Resampling.BILINEAR)
    pixels[: scaled[1], : scaled[0]] = np.asarray(resized)
    return pixels, [x / y for x, y in zip(scaled, image.size)]


def detect(image, session, about: dict, least: float) -> list:
    """Return class, score and box of each object, the best one first.

    Boxes are left, top, right and bottom, in pixels of the image.
    """
    import numpy as np

    pixels, factors = fit(
        image, about['input']['size'], about.get('resize') or {}
    )
    feed = {session.get_inputs()[0].name: to_input(pixels, about)}
    boxes, scores, labels = (x[0] for x in session.run(OUTPUTS, feed))
    boxes = boxes / np.float32([*factors, *factors])
    boxes = boxes.clip(0, np.float32([*image.size, *image.size]))
    classes = about.get('classes') or []
    return [
        (
            classes[k] if 0 <= k < len(classes) else f'class {k}',
            float(score),
            [float(x) for x in box],
        )
        for box, score, k in zip(boxes, scores, labels.tolist())
        if k >= 0 and score >= least
    ]


def draw(image, found: list):
    """Return the image with boxes, the best one on top."""
    from PIL import ImageDraw

    image = image.copy()
    pen = ImageDraw.Draw(image)
    line = max(1, round(min(image.size) / 200))
    for name, score, box in reversed(found):
        color = f'hsl({sum(map(ord, name)) * 47 % 360}, 90%, 45%)'
        pen.rectangle(box, outline=color, width=line)
        text = f'{name} {score:.0%}'
        area = pen.textbbox(box[:2], text)
        pen.rectangle(area, fill=color)
        pen.text(box[:2], text, fill='white')
    return image


def fraction(text: str) -> float:
    """A number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(
            f'{text!r}, expected a number from 0 to 1'
        )
    return value


def output_path(args: argparse.Namespace) -> str:
    """Return the file that is written, which must not be there yet."""
    path = args.output
    if path is None:
        path = os.path.splitext(args.image)[0] + '_boxes.png'
    if os.path.exists(path) and not args.force:
        raise SystemExit(
            f'{path!r} is there already: add --force to overwrite it, or name '
            'another file with --output'
        )
    check_regular(path, 'a name for the drawing')
    return path


def main() -> int:
    """Detect objects in one image, print a table and draw them."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('image', help='a PNG, a JPEG or the like')
    parser.add_argument('--model', required=True, help='of tools/export.py')
    parser.add_argument(
        '--score', type=fraction, default=0.3, help='least score, 0 to 1'
    )
    parser.add_argument(
        '--output', help='the drawing (default: IMAGE with _boxes.png)'
    )
    parser.add_argument(
        '--force', action='store_true', help='overwrite an existing drawing'
    )
    args = parser.parse_args()
    try:
        import numpy  # noqa: F401
        import onnxruntime  # noqa: F401
        from PIL import Image  # noqa: F401
    except ImportError as error:
        raise SystemExit(
            f'{error.name} is missing: pip install onnxruntime numpy pillow'
        ) from None
    path = output_path(args)
    session, about = read_model(args.model)
    if [x.name for x in session.get_outputs()] != OUTPUTS:
        raise SystemExit(
            f'{args.model!r} puts out no boxes: give a file that '
            'tools/export.py wrote with --with-postprocess'
        )
    image = open_image(args.image)
    found = detect(image, session, about, args.score)
    for name, score, box in found:
        print(f'{score:7.2%}  {name}  {" ".join(f"{x:.0f}" for x in box)}')
    try:
        draw(image, found).save(path)
    except (OSError, ValueError) as error:
        raise SystemExit(f'{path!r} cannot be written: {error}') from None
    print(f'{len(found)} boxes are drawn in {path}')
    return 0


if __name__ == '__main__':
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
