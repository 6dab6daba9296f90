"""What a unit is reconstructed from, and what comes of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Optional

import torch
from torch import Tensor

from ..activations import CachedBatches, images_per_pass


@dataclass
class UnitData:
    """Activations of all calibration images around one unit.

    Attributes:
        inputs (CachedBatches): Arguments that the quantized prefix gives.
        float_inputs (CachedBatches): Arguments in the float network.
        targets (CachedBatches): The unit's output in the float network.
        held_out (int): Images at the end that only judge.
    """

    inputs: CachedBatches
    float_inputs: CachedBatches
    targets: CachedBatches
    held_out: int

    @property
    def trained(self) -> int:
        """Number of images to learn from."""
        return len(self.inputs) - self.held_out

    def parts(self, index: Tensor, size: int) -> tuple[Tensor, ...]:
        """Cut images so that a part runs through the unit in little memory.

        Args:
            index (Tensor): Numbers of images.
            size (int): Images in a part, at the most.
        """
        elements = self.inputs.elements + self.targets.elements
        return index.split(images_per_pass(elements, max_images=size))

    def held_out_parts(self, size: int) -> tuple[Tensor, ...]:
        """Return indices of held-out images, ``size`` or fewer at a time."""
        return self.parts(torch.arange(self.trained, len(self.inputs)), size)


@dataclass
class UnitReport:
    """How the reconstruction of one unit went.

    Attributes:
        name (str): The unit.
        layers (list[str]): Its layers.
        bits (dict): Bits of weight and input of each layer.
        before (float): Error on held-out images with nearest rounding, as
            the objective has it: its scale is the unit's own, and units do
            not compare.
        after (float): Error on them with the learned rounding.
        accepted (bool): Whether the learned rounding was kept.
        iterations (int): Steps of the optimiser.
        autocast (str, optional): The short type of numbers in which it
            learned, if any.
        objective (str): What the error is, and what the network's outputs
            were taken for.
        seconds (float): Time spent.
        note (str): What went wrong, if anything did.
        losses (list): Pairs of iteration and training loss.
    """

    name: str
    layers: list[str] = field(default_factory=list)
    bits: dict[str, tuple[int, int]] = field(default_factory=dict)
    before: float = float('nan')
    after: float = float('nan')
    accepted: bool = False
    iterations: int = 0
    autocast: Optional[str] = None
    objective: str = ''
    seconds: float = 0.0
    note: str = ''
    losses: list[tuple[int, float]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain Python, without the loss curve."""
        plain = asdict(self)
        del plain['losses']
        return plain
