"""What demo/compose_detection.py composes, with boxes and masks."""

from __future__ import annotations

import json

import numpy as np
from PIL import Image


def test_boxes_of_the_composed_set_lie_on_their_canvas(detection_set):
    content = json.loads((detection_set / 'test.json').read_text())
    assert len(content['images']) == 400 and len(content['categories']) == 10
    for box in content['annotations']:
        x, y, width, height = box['bbox']
        assert min(x, y) >= 0 < min(width, height)
        assert max(x + width, y + height) <= 96
    classes = {box['category_id'] for box in content['annotations']}
    assert classes == set(range(10))


def test_masks_have_the_classes_of_the_boxes(detection_set):
    content = json.loads((detection_set / 'test.json').read_text())
    masks = {
        image['id']: np.asarray(
            Image.open(detection_set / 'test_masks' / image['file_name'])
        )
        for image in content['images'][:50]
    }
    count = dict.fromkeys(masks, 0)
    for box in content['annotations']:
        if box['image_id'] not in masks:
            continue
        x, y, width, height = box['bbox']
        mask = masks[box['image_id']][y : y + height, x : x + width]
        own = mask == box['category_id'] + 1
        # The box is the smallest around the piece: it touches all sides.
        assert own[0].any() and own[-1].any()
        assert own[:, 0].any() and own[:, -1].any()
        count[box['image_id']] += int(own.sum())
    for index, mask in masks.items():
        assert mask.shape == (96, 96)
        assert 0 < (mask > 0).sum() <= count[index]
