"""Reconstruct the units that no earlier run has finished, and save them."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from torch import nn

from ..activations import CachedBatches
from ..algorithms import BRECQ
from ..reconstruction import UnitReport
from ..report import UnitProgress
from .progress import Progress


def reconstruct_units(
    model: BRECQ,
    teacher: nn.Module,
    images: CachedBatches,
    seed: int,
    progress: Progress,
    logger: logging.Logger,
) -> Iterator[UnitReport]:
    """Reconstruct the units that are not finished.

    Args:
        model (BRECQ): The prepared model.
        teacher (nn.Module): Its float network.
        images (CachedBatches): Calibration images.
        seed (int): Seed of all randomness.
        progress (Progress): The finished units. Others are added to it.
        logger (logging.Logger): Gets a line for each unit.

    Yields:
        UnitReport: Of each unit that was not finished.
    """
    with UnitProgress(model.reports, logger) as show:
        for report in progress.reports:
            show(report)
        model.reconstructor.autocast.resume(progress.types)
        for report in model.reconstruct(
            teacher, images, seed, done=progress.units(model.part)
        ):
            progress.add_unit(report, model.part(report.name))
            show(report)
            yield report
