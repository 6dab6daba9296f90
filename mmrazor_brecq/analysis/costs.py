"""What the quantization of a network and of its units costs at the output."""

from __future__ import annotations

from contextlib import ExitStack

from torch import nn

from ..activations import CachedBatches
from ..algorithms import BRECQ
from ..reconstruction import NetworkRefiner
from .swap import swapped

#: Forward passes of a single image that all units together may cost.
PASSES = 512
#: Images on which units are compared, at most and at least.
MOST_IMAGES, LEAST_IMAGES = 32, 4


def divergence(
    model: BRECQ, teacher: nn.Module, images: CachedBatches
) -> float:
    """Return a model's divergence from float on held-out images, in nats."""
    first = len(images) - model.held_out_of(len(images))
    return validator().divergence(model.architecture, teacher, images, first)


def unit_costs(
    model: BRECQ, teacher: nn.Module, images: CachedBatches
) -> dict[str, float]:
    """Return what each unit costs if it alone is quantized.

    The costs of units can be compared, unlike their errors, and their sum is
    about the cost of the network where units do not make up for each other.

    Args:
        model (BRECQ): A quantized model.
        teacher (nn.Module): Its float network, as it is before and after.
        images (CachedBatches): Calibration images. A few of those held out
            are used, so that this takes about one per cent of a run.

    Returns:
        dict[str, float]: By name of the unit, the divergence of the output
        from that of the float network, in nats an image.
    """
    held_out = model.held_out_of(len(images))
    count = max(LEAST_IMAGES, min(MOST_IMAGES, PASSES // len(model.units)))
    first = len(images) - held_out
    span = range(first, first + min(count, held_out))
    diverges = validator().divergence_from(teacher, images, span)
    costs = {}
    for unit in model.units:
        with ExitStack() as stack:
            network = teacher
            if unit.name:
                stack.enter_context(swapped(teacher, {unit.name: unit.module}))
            else:
                network = model.architecture
            costs[unit.name] = diverges(network)
    return costs


def validator() -> NetworkRefiner:
    """Return what measures divergences of outputs, whatever they are."""
    return NetworkRefiner(augment=[], likelihood=dict(type='FromOutput'))
