"""Compose a small detection set from the Fashion-MNIST slices in this folder.

python demo/compose_detection.py data/fashion_detection

Each image is a canvas with noise on which a few pieces of clothing lie, large
and small, so their boxes and masks are known. The folder gets ``train``,
``calibration`` and ``test``, each with a COCO file of its boxes and a folder
of masks, in which a pixel has its class, from 1 on, or 0. The same command
makes the same files.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmrazor_brecq.datasets.idx import read_idx

SOURCE = Path(__file__).parent / 'fashion_mnist'
CLASSES = (
    *('T-shirt/top', 'Trouser', 'Pullover', 'Dress', 'Coat'),
    *('Sandal', 'Shirt', 'Sneaker', 'Bag', 'Ankle boot'),
)
#: Of each part: the files, the slice of their images, the number of canvases
#: and a seed.
PARTS = dict(
    train=('t10k', slice(0, 8000), 2000, 1),
    calibration=('calib', slice(None), 256, 2),
    test=('t10k', slice(8000, None), 400, 3),
)
#: Side of a canvas, and smallest and largest side of a piece, in pixels.
SIDE, SMALLEST, LARGEST = 96, 16, 44
#: Most pieces on a canvas.
MOST = 6


def compose(folder: Path) -> None:
    """Write all parts into a folder."""
    for name, (files, which, count, seed) in PARTS.items():
        pieces = read_idx(str(SOURCE / f'{files}-images-idx3-ubyte.gz'))[which]
        labels = read_idx(str(SOURCE / f'{files}-labels-idx1-ubyte.gz'))[which]
        generator = np.random.default_rng(seed)
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / f'{name}_masks').mkdir(exist_ok=True)
        images: list[dict[str, Any]] = []
        boxes: list[dict[str, Any]] = []
        for i in range(count):
            canvas, mask, found = _canvas(pieces, labels, generator)
            file = f'{i:04}.png'
            Image.fromarray(canvas).save(folder / name / file)
            Image.fromarray(mask).save(folder / f'{name}_masks' / file)
            images.append(dict(id=i, file_name=file, width=SIDE, height=SIDE))
            for label, box in found:
                boxes.append(_annotation(len(boxes), i, label, box))
        categories = [dict(id=i, name=c) for i, c in enumerate(CLASSES)]
        content = dict(images=images, annotations=boxes, categories=categories)
        (folder / f'{name}.json').write_text(json.dumps(content))


def _canvas(
    pieces: np.ndarray, labels: np.ndarray, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, list[tuple[int, Sequence[int]]]]:
    """Return a gray canvas, its mask, and the class and box of each piece."""
    canvas = generator.normal(40, 12, (SIDE, SIDE)).clip(0, 255)
    mask = np.zeros((SIDE, SIDE), np.uint8)
    found: list[tuple[int, Sequence[int]]] = []
    for _ in range(4 * MOST):
        k = int(generator.integers(len(pieces)))
        side = int(generator.integers(SMALLEST, LARGEST + 1))
        x, y = (int(v) for v in generator.integers(0, SIDE - side + 1, 2))
        scaled = Image.fromarray(pieces[k]).resize((side, side))
        piece = np.asarray(scaled, float)
        shape = piece > 25
        rows, columns = shape.any(1).nonzero()[0], shape.any(0).nonzero()[0]
        area = np.s_[y : y + side, x : x + side]
        if len(found) == MOST or not len(rows) or mask[area].any():
            continue
        light = generator.uniform(0.6, 1.0)
        canvas[area] = np.where(shape, piece * light, canvas[area])
        mask[area][shape] = labels[k] + 1
        box = (
            x + int(columns[0]),
            y + int(rows[0]),
            int(columns[-1] - columns[0]) + 1,
            int(rows[-1] - rows[0]) + 1,
        )
        found.append((int(labels[k]), box))
    return np.repeat(canvas.astype(np.uint8)[..., None], 3, 2), mask, found


def _annotation(
    index: int, image: int, label: int, box: Sequence[int]
) -> dict[str, Any]:
    """Return a box as COCO has it: x, y, width, height."""
    return dict(
        id=index,
        image_id=image,
        category_id=label,
        bbox=list(box),
        area=box[2] * box[3],
        iscrowd=0,
    )


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('folder', type=Path)
    compose(parser.parse_args().folder)
