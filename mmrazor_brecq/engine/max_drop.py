"""How far the accuracy of a quantized model may fall."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Optional, Union

from mmengine.dist import get_world_size

from .._requirements import require
from ..report import is_error
from ..validation import Amount, Config


class TargetMissed(ValueError):
    """Error: the accuracy falls further than is allowed, whatever the bits."""


@dataclass
class MaxDrop:
    """How far the accuracy may fall.

    Args:
        points (float): The largest drop of the main metric. A point of a
            metric that is a fraction is 0.01.
        up_to (int | str): The most bits that a layer gets: 8, or ``'float'``
            if layers may also be left in float.
    """

    points: Amount
    up_to: Literal[8, 'float'] = 8

    @classmethod
    def of(cls, value: Union[float, dict, None]) -> Optional[MaxDrop]:
        """Return the value of ``max_drop``; None if there is none."""
        if value is None:
            return None
        return cls(**value) if isinstance(value, dict) else cls(value)


#: Type of a parameter that takes a number of points, or a :class:`MaxDrop`.
MaxDropConfig = Union[Amount, Annotated[dict, Config(MaxDrop)]]


@dataclass
class Yardstick:
    """What a drop is measured by.

    Args:
        metric (str): Name of the metric.
        best (float): Its value with the float model.
        smaller_is_better (bool): Whether it is an error.
        point (float): Size of a point.
    """

    metric: str
    best: float
    smaller_is_better: bool = False
    point: float = 1.0

    def drop(self, value: float) -> float:
        """Return by how many points a value is worse than the float one.

        What is not finite is infinitely worse.
        """
        lost = (self.best - value) / self.point
        if not math.isfinite(lost):
            return math.inf
        return -lost if self.smaller_is_better else lost


def yardstick_of(metric: str, best: float) -> Yardstick:
    """Return what drops of a metric of a config are measured by.

    Args:
        metric (str): Its name.
        best (float): Its value with the float model. Of a metric that is a
            fraction, a point is 0.01; errors count as they are.

    Raises:
        ValueError: If the value is not finite.
    """
    if not math.isfinite(best):
        raise ValueError(
            f'{metric} of the float model is {best}: --max-drop needs a '
            'number to compare with'
        )
    error = is_error(metric)
    is_fraction = abs(best) <= 1 and not error
    return Yardstick(metric, best, error, 0.01 if is_fraction else 1.0)


def check_met(report: Mapping[str, Any]) -> None:
    """Raise an error if a finished run has missed its target.

    Args:
        report (dict): As in ``report.json``.

    Raises:
        TargetMissed: If the accuracy fell further than allowed.
    """
    path = report.get('max_drop')
    if not path or path['met']:
        return
    best = path['attempts'][path['kept']]
    raise TargetMissed(
        f'{path["metric"]} is {best["value"]:.4g}, {best["drop"]:.2f} points '
        f'below float, and {path["points"]:g} are allowed (--max-drop): '
        f'{len(path["attempts"])} models up to {path["up_to"]} bits did not '
        'keep that. The best of them was written; allow more, add '
        '`--up-to float`, or give more images or iterations'
    )


def check_possible(target: Optional[MaxDrop], metric: bool) -> None:
    """Refuse a target that cannot be measured.

    Args:
        target (MaxDrop, optional): The target.
        metric (bool): Whether there is a metric.

    Raises:
        ImportError: If the package that solves integer programs is missing.
        ValueError: If there is none, or there are several processes.
    """
    if target is None:
        return
    text = f'--max-drop {target.points:g} (`test_cfg.max_drop`)'
    if not metric:
        raise ValueError(
            f'{text} needs a metric: leave out --no-eval, and give '
            '`test_dataloader` and `test_evaluator`, on images with labels'
        )
    if get_world_size() > 1:
        raise ValueError(f'{text} works in one process: leave --launcher out')
    require('scipy.optimize')  # Not after the first model has learned.
