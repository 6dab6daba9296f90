"""What a run does with a model: prepare, round to nearest, reconstruct."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from torch import nn

from ..activations import CachedBatches
from ..algorithms import BRECQ
from ..reconstruction import NearestRounding, UnitReport
from ..report import UnitProgress
from .progress import Progress


def prepare_on(
    model: BRECQ, images: CachedBatches
) -> tuple[nn.Module, dict[str, float]]:
    """Prepare a float model with all that calibration images decide.

    Args:
        model (BRECQ): The model. It is changed in place.
        images (CachedBatches): Calibration images.

    Returns:
        tuple[nn.Module, dict]: What :meth:`BRECQ.prepare` and
        :meth:`BRECQ.widen` return.
    """
    teacher = model.prepare(images.batch(0)[:1])
    model.rotate_channels(teacher, images)
    model.equalize(teacher, images)
    return teacher, model.widen(images)


def round_to_nearest(
    model: BRECQ,
    teacher: nn.Module,
    images: CachedBatches,
    seed: int,
    logger: logging.Logger,
) -> None:
    """Quantize a prepared model by nearest rounding.

    Args:
        model (BRECQ): The model. It is changed in place.
        teacher (nn.Module): Its float network.
        images (CachedBatches): Calibration images.
        seed (int): Seed of all randomness.
        logger (logging.Logger): Shows how far it is.
    """
    rounding = model.reconstruct(teacher, images, seed, NearestRounding())
    with UnitProgress(len(model.units), logger, 'round to nearest') as show:
        for _ in rounding:
            show.advance()


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
