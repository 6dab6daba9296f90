"""Detectors in two stages: the second one runs on given regions.

The first stage proposes regions of an image, as many as it finds, and the
second one looks at each. Quantized, the first stage proposes others, so that
outputs of the second could be compared with nothing. Here both networks run
on the regions of the float one, the same number for each image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.structures import BaseDataElement, InstanceData
from torch import Tensor, nn

from ..layers import MixedIn, mix_in

#: Regions of an image, those of the highest scores.
REGIONS = 32
#: Heads for masks look at no more regions of a pass, its first ones.
MAX_REGIONS = 100
#: Attribute of a data sample that has its regions.
KEY = 'fixed_regions'


class OnGivenRegions(MixedIn):
    """Mixin of a detector whose data samples may have regions.

    With them, its raw output has the maps of the first stage, too.
    """

    def _forward(self, batch_inputs: Tensor, batch_data_samples: Any) -> Any:
        network: Any = self
        regions = [sample.get(KEY) for sample in batch_data_samples or [None]]
        if None in regions:
            return super()._forward(  # type: ignore[misc]
                batch_inputs, batch_data_samples
            )
        features = network.extract_feat(batch_inputs)
        maps = network.rpn_head(features) if network.with_rpn else ()
        found = network.roi_head.forward(features, regions, batch_data_samples)
        return maps, [*map(_joined, found)]


def _joined(found: Any) -> Any:
    """Return what is a list of an entry for each image as one tensor."""
    if not isinstance(found, (list, tuple)):
        return found
    tensors = [x for x in found if isinstance(x, Tensor)]
    return torch.cat(tensors) if len(tensors) == len(found) > 0 else found


def most_images(data: Sequence[BaseDataElement]) -> int:
    """Return how many images may run together, by their data samples."""
    if not has_regions(data):
        return max(1, len(data))
    return MAX_REGIONS // REGIONS


def has_regions(data: Sequence[BaseDataElement]) -> bool:
    """Return whether data samples have regions."""
    return all(KEY in sample for sample in data)


def show_second_stage(network: nn.Module) -> None:
    """Let a detector run its second stage on the regions of data samples."""
    mix_in(OnGivenRegions, network)


def fix_regions(
    network: Any, images: Tensor, data: Sequence[BaseDataElement]
) -> list[BaseDataElement]:
    """Return data samples that have the regions of a network's first stage.

    Args:
        network (nn.Module): The float network, in evaluation mode.
        images (Tensor): Preprocessed images, N x C x H x W.
        data (list): Their N data samples.

    Returns:
        list: The data samples themselves if the network has no first stage
        that finds regions in features.
    """
    head = getattr(network, 'roi_head', None)
    first = getattr(network, 'rpn_head', None)
    if not isinstance(head, nn.Module) or not (
        first is None or hasattr(first, 'predict_by_feat')
    ):
        return [*data]
    if first is None:
        found = [sample.proposals for sample in data]
    else:
        features = network.extract_feat(images)
        found = first.predict(features, [*data], rescale=False)
    size = tuple(images.shape[-2:])
    return [
        _with_regions(sample, regions.bboxes, size)
        for sample, regions in zip(data, found)
    ]


def _with_regions(
    sample: BaseDataElement, boxes: Any, size: tuple[int, ...]
) -> BaseDataElement:
    """Return a data sample with the same number of regions as all others.

    Args:
        sample (BaseDataElement): The data sample.
        boxes (Tensor): K x 4 corners as (x1, y1, x2, y2), the best first.
            Where they are too few, they are repeated; without any, the
            region is the whole image.
        size (tuple[int, int]): Height and width of the tensor of images.
    """
    boxes = getattr(boxes, 'tensor', boxes)  # mmdet has boxes of a class.
    boxes = boxes[boxes.isfinite().all(1)]
    if not len(boxes):
        boxes = boxes.new_tensor([[0, 0, *size[::-1]]])
    chosen = torch.arange(REGIONS, device=boxes.device) % len(boxes)
    new = sample.new()
    setattr(new, KEY, InstanceData(bboxes=boxes[chosen]))
    return new
