"""Nearest rounding: the baseline of learned rounding."""

from __future__ import annotations

from typing import Optional

from ..objectives import ObjectiveConfig
from ..registry import TASK_UTILS
from ..validation import Count
from .base import Reconstructor


@TASK_UTILS.register_module()
class NearestRounding(Reconstructor):
    """Reconstructor that fits scales and rounds weights to nearest.

    Args:
        batch_size (int): Number of images at a time, 1 or more.
        fit_images (int): Number of images that activation scales are chosen
            on, 1 or more.
        objective (dict): Config of the error that is reported; by default
            :class:`MSE`.

    Raises:
        ValueError: If a count is below 1.

    Example:
        >>> model = dict(reconstructor=dict(type='NearestRounding'))
    """

    def __init__(
        self,
        batch_size: Count = 32,
        fit_images: Count = 256,
        objective: Optional[ObjectiveConfig] = None,
    ) -> None:
        super().__init__(
            TASK_UTILS.build(objective or dict(type='MSE')),
            batch_size,
            fit_images,
        )
