"""What a second stage says of regions is told from other outputs."""

from __future__ import annotations

import pytest
import torch

from mmrazor_brecq.objectives.region_head import (
    chance_of_box,
    values_of_regions,
)


def outputs(*shapes):
    return [torch.randn(shape) for shape in shapes]


@pytest.mark.parametrize(
    ('shapes', 'images', 'boxes', 'masks'),
    [
        ([(64, 6), (64, 20)], 2, {1: 0}, set()),
        ([(64, 6), (64, 4)], 2, {1: 0}, set()),
        ([(64, 20), (64, 6)], 2, {0: 1}, set()),
        ([(64, 6), (64, 20), (64, 5, 7, 7)], 2, {1: 0}, {2}),
        ([(64, 6), (64, 20), (64, 1, 7, 7)], 2, {1: 0}, {2}),
        ([(2, 3, 8, 8), (64, 6), (64, 20)], 2, {2: 1}, set()),
        # Two heads of a classifier.
        ([(64, 6), (64, 20)], 64, {}, set()),
        ([(64, 10), (64, 4)], 64, {}, set()),
        # Rows that belong to no image, and tokens.
        ([(63, 6), (63, 20)], 2, {}, set()),
        ([(64, 6), (64, 17)], 2, {}, set()),
        ([(64, 6)], 2, {}, set()),
        ([(2, 32, 6), (2, 32, 20)], 2, {}, set()),
    ],
)
def test_boxes_and_masks_of_regions(shapes, images, boxes, masks):
    assert values_of_regions(outputs(*shapes), images) == (boxes, masks)


def test_a_box_counts_as_its_class_is_likely():
    logits = torch.tensor([[9.0, 0, 0], [0, 0, 9.0]])
    one = chance_of_box(logits, 4)
    assert one.shape == (2, 1) and one[0] > 0.99 and one[1] < 0.01
    each = chance_of_box(logits, 8)
    assert each.shape == (2, 8)
    assert each[0, :4].min() > 0.99 and each[0, 4:].max() < 0.01
