"""The part of a report that looks at what became of units and layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from ..activations import CachedBatches
from ..algorithms import BRECQ
from ..functional import Histogram
from ..reconstruction import UnitReport
from .costs import unit_costs
from .layers import layer_details


def describe(
    model: BRECQ,
    teacher: nn.Module,
    images: CachedBatches,
    reports: Sequence[UnitReport],
) -> dict[str, list[dict[str, Any]]]:
    """Return the entries of a report on units and on layers.

    Args:
        model (BRECQ): A quantized model.
        teacher (nn.Module): Its float network.
        images (CachedBatches): Its calibration images.
        reports (list[UnitReport]): The reports of its units.

    Returns:
        dict: ``units``, the reports as plain Python, each with its ``cost``
        as of :func:`unit_costs` (None for the last pass), and ``layers`` as
        of :func:`layer_details`.
    """
    costs = unit_costs(model, teacher, images)
    histograms: dict[str, Histogram] = {}
    units: list[dict[str, Any]] = []
    for report in reports:
        histograms.update(report.histograms)
        unit = report.to_dict()
        del unit['histograms']  # Those of the layers have them.
        units.append(dict(unit, cost=costs.get(report.name)))
    return dict(units=units, layers=layer_details(model, teacher, histograms))
