"""Activations around a unit, and the report of its reconstruction."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Optional, Union

import torch
from torch import Tensor

from ..activations import CachedBatches, images_per_pass
from ..functional import Histogram


@dataclass
class UnitData:
    """Activations of all calibration images around one unit.

    Attributes:
        inputs (CachedBatches): Arguments of the unit after the quantized
            units before it.
        float_inputs (CachedBatches): Arguments in the float network.
        targets (CachedBatches): Outputs of the unit in the float network.
        held_out (int): Number of images, the last ones, that are held out
            for validation.
        centers (bool): Whether biases may make up for the mean error of
            rounded weights.
    """

    inputs: CachedBatches
    float_inputs: CachedBatches
    targets: CachedBatches
    held_out: int
    centers: bool = False

    @property
    def trained(self) -> int:
        """Return the number of images to learn from, the first ones."""
        return len(self.inputs) - self.held_out

    def parts(self, index: Tensor, size: int) -> tuple[Tensor, ...]:
        """Split indices of images so that each part needs little memory.

        Args:
            index (Tensor): Indices of images, 1-dimensional.
            size (int): Maximum number of images in a part, 1 or more.

        Returns:
            tuple[Tensor]: The parts of ``index`` in order.
        """
        elements = self.inputs.elements + self.targets.elements
        return index.split(images_per_pass(elements, max_images=size))

    def held_out_parts(self, size: int) -> tuple[Tensor, ...]:
        """Return the indices of held-out images in parts.

        Args:
            size (int): Maximum number of images in a part, 1 or more.
        """
        return self.parts(torch.arange(self.trained, len(self.inputs)), size)


#: A value of a report: plain Python, as JSON has it.
Plain = Union[str, int, float, None, list, dict]
#: Number of points of a loss curve that a report keeps.
CURVE_POINTS = 48


@dataclass
class UnitReport:
    """Report of the reconstruction of one unit.

    Attributes:
        name (str): Name of the unit.
        layers (list[str]): Names of its layers.
        bits (dict): Bits of weight and input of each layer, by name.
        before (float): Error of nearest rounding on held-out images, as
            defined by the objective. Its scale differs from unit to unit, so
            units cannot be compared.
        after (float): Error of the learned rounding on held-out images.
        accepted (bool): Whether the learned rounding was kept.
        centered (bool): Whether biases make up for the mean error of rounded
            weights.
        iterations (int): Number of optimizer steps.
        autocast (str, optional): Name of the low-precision type that it
            learned in, if any.
        objective (str): Name of the objective, and the likelihood of the
            network's outputs.
        seconds (float): Duration.
        note (str): Why nearest rounding was kept, if it was.
        losses (list): Pairs of iteration and training error.
        histograms (dict): Histogram of each activation that its quantizers
            were fitted on, by name of the quantizer, as of
            :func:`histogram`.
    """

    name: str
    layers: list[str] = field(default_factory=list)
    bits: dict[str, tuple[int, int]] = field(default_factory=dict)
    before: float = float('nan')
    after: float = float('nan')
    accepted: bool = False
    centered: bool = False
    iterations: int = 0
    autocast: Optional[str] = None
    objective: str = ''
    seconds: float = 0.0
    note: str = ''
    losses: list[tuple[int, float]] = field(default_factory=list)
    histograms: dict[str, Histogram] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Plain]:
        """Return the report in plain Python, its losses thinned out."""
        plain = asdict(self)
        every = max(1, -(-len(self.losses) // CURVE_POINTS))
        plain['losses'] = [
            [step, float(f'{loss:.4g}')] for step, loss in self.losses[::every]
        ]
        return plain
