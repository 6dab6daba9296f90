"""Find out what is wrong with a mask, by the sample that it came with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Optional

import torch
from torch import Tensor

#: Value of the pixels that no metric counts.
IGNORED = 255


def mask_of(sample: Any) -> Optional[Tensor]:
    """Return the mask of a sample of mmsegmentation, or None without one."""
    data = sample.get('data_samples') if isinstance(sample, Mapping) else None
    mask = getattr(getattr(data, 'gt_sem_seg', None), 'data', None)
    return mask if isinstance(mask, Tensor) else None


def why_unfit(sample: Any) -> Optional[str]:
    """Return what keeps a mask from being compared with its image.

    Args:
        sample (dict): What a pipeline packed: ``inputs``, ``data_samples``.

    Returns:
        str, optional: None if nothing does, or there is no mask.
    """
    mask = mask_of(sample)
    if mask is None:
        return None
    shape = tuple(mask.shape)
    if mask.dim() != 3 or shape[0] != 1:
        return (
            f'its mask has the shape {shape}, expected one channel, in which '
            'each pixel has the number of its class'
        )
    info = sample['data_samples'].metainfo
    sizes = [
        tuple(info[key][:2])
        for key in ('ori_shape', 'img_shape')
        if key in info
    ]
    if sizes and shape[1:] not in sizes:
        return (
            f'its mask has {shape[1]} x {shape[2]} pixels, and the image '
            f'{sizes[0][0]} x {sizes[0][1]}'
        )
    return None


def unknown_values(sample: Any, classes: int) -> list[int]:
    """Return the values of a mask that are no class.

    Args:
        sample (dict): What a pipeline packed.
        classes (int): Number of classes.
    """
    mask = mask_of(sample)
    if mask is None:
        return []
    values = torch.unique(mask).tolist()
    return [v for v in values if not 0 <= v < classes and v != IGNORED]
