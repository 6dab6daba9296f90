"""Quantize a network within a drop that a user's function measures."""

from __future__ import annotations

import logging
import math
import os.path as osp
import tempfile
from collections.abc import Callable
from typing import Any

from mmengine.logging import MMLogger, print_log
from torch import nn

from ..activations import CachedBatches
from ..algorithms import BRECQ
from ..graph import copy_network
from .accuracy_control import AccuracyControl, Attempt
from .max_drop import MaxDrop, Yardstick, check_possible
from .progress import Progress
from .unit_run import prepare_on, reconstruct_units

#: Returns how good a model is, larger being better.
Evaluate = Callable[[nn.Module], Any]


def quantize_within(
    target: MaxDrop,
    evaluate: Evaluate,
    network: nn.Module,
    original: BRECQ,
    images: CachedBatches,
    seed: int,
) -> tuple[Attempt, dict[str, Any]]:
    """Quantize a network, with more bits where it loses too much.

    Args:
        target (MaxDrop): The largest drop, in the unit of ``evaluate``.
        evaluate (callable): Returns how good a model is.
        network (nn.Module): The float network; it is not changed.
        original (BRECQ): The same, not prepared; it is not changed.
        images (CachedBatches): Calibration images.
        seed (int): Seed of all randomness.

    Returns:
        tuple[Attempt, dict]: The attempt that is kept, and ``max_drop`` of
        the report.

    Raises:
        ValueError: If ``evaluate`` gives no finite number for the float
            network.
    """
    check_possible(target, metric=True)
    logger = MMLogger.get_current_instance()
    floating = copy_network(network)
    floating.eval()
    best = _number(evaluate(floating))
    if not math.isfinite(best):
        raise ValueError(
            f'`evaluate` gives {best} for the float network, expected a '
            'finite number'
        )
    yardstick = Yardstick('evaluate', best)

    def learn(attempt: Attempt) -> None:
        for _ in reconstruct_units(
            attempt.model,
            attempt.teacher,
            images,
            seed,
            attempt.progress,
            logger,
        ):
            pass
        attempt.model.eval()
        attempt.value = _number(evaluate(attempt.model))
        attempt.model.eval()  # Whatever `evaluate` has left it in.
        attempt.drop = yardstick.drop(attempt.value)
        logger.info(
            f'`evaluate` gives {attempt.value:.4g}, {attempt.drop:.4g} below '
            f'float; {target.points:g} is allowed'
        )

    with tempfile.TemporaryDirectory() as folder:
        model = copy_network(original)
        teacher, widened = prepare_on(model, images)
        progress = Progress(osp.join(folder, 'attempt1'), {}, False)
        first = Attempt(model, teacher, progress, widened)
        learn(first)
        control = AccuracyControl(
            target, original, images, None, folder, {}, seed, logger
        )
        kept = control(first, learn)
    entry = control.report(yardstick, kept)
    if not entry['met']:
        print_log(
            f'`evaluate` gives {kept.value:.4g}, {kept.drop:.4g} below float, '
            f'and {target.points:g} is allowed (`max_drop`): no bits up to '
            f'{target.up_to} kept that, this model is the best of them',
            'current',
            logging.WARNING,
        )
    return kept, entry


def _number(value: Any) -> float:
    """Return what ``evaluate`` returned as a number.

    Raises:
        ValueError: If it is none.
    """
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f'`evaluate` returned {value!r:.80}, expected a number'
        ) from error
