"""Note the matrix products that modules compute in their own code."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import ProductMode, is_layer

if TYPE_CHECKING:
    from .record import Call, Recording


class ProductUse(NamedTuple):
    """One product in a module's own code, in one call of the module.

    Attributes:
        call (Call): The call of the module.
        place (int): Index of the product among all in this call.
        operands (tuple[int, int]): Identifiers of the memory of both
            operands; of a linear function those of input and weight.
        shapes (tuple): Shapes of both operands.
        weight (Tensor, optional): The second operand, N x K, of a linear
            function, or if it is a parameter or a view of one.
        bias (Tensor, optional): Of a linear function.
        span (tuple[int, int]): Index of its first operation, and of the
            first one after it.
    """

    call: Call
    place: int
    operands: tuple[int, int]
    shapes: tuple[torch.Size, torch.Size]
    weight: Optional[Tensor]
    bias: Optional[Tensor]
    span: tuple[int, int]


class UseRecorder(ProductMode):
    """Notes the products of all modules but the layers.

    Args:
        recording (Recording): Where they are noted.
        stack (list[Call]): The calls that have begun and not ended.
        parameters (set[int]): Identifiers of the memory of all parameters.
    """

    def __init__(
        self, recording: Recording, stack: list[Call], parameters: set[int]
    ) -> None:
        super().__init__()
        self.recording = recording
        self.stack = stack
        self.parameters = parameters

    def sees(self, module: Optional[nn.Module]) -> bool:
        """Return whether the module computes and is no layer itself."""
        return (
            bool(self.stack)
            and self.stack[-1].module is module
            and not is_layer(module)
        )

    def product(self, left: Tensor, right: Tensor) -> Tensor:
        """Note a product and return it."""
        weight = None
        if right.dim() == 2 and self._memory(right) in self.parameters:
            weight = right.t()
        start = len(self.recording.operations)
        out = torch.matmul(left, right)
        self._note(start, left, right, weight, None)
        return out

    def linear(
        self, x: Tensor, weight: Tensor, bias: Optional[Tensor]
    ) -> Tensor:
        """Note a linear function and return its result."""
        start = len(self.recording.operations)
        out = F.linear(x, weight, bias)
        self._note(start, x, weight, weight, bias)
        return out

    @staticmethod
    def _memory(x: Tensor) -> int:
        return x.untyped_storage()._cdata

    def _note(
        self,
        start: int,
        left: Tensor,
        right: Tensor,
        weight: Optional[Tensor],
        bias: Optional[Tensor],
    ) -> None:
        self.recording.values((left, right))  # Keeps the identifiers.
        call = self.stack[-1]
        uses = self.recording.products
        place = sum(use.call is call for use in uses)
        uses.append(
            ProductUse(
                call,
                place,
                (self._memory(left), self._memory(right)),
                (left.shape, right.shape),
                weight,
                bias,
                (start, len(self.recording.operations)),
            )
        )


def constant_memory(
    network: nn.Module, recording: Recording
) -> list[tuple[bool, bool]]:
    """Return for each product which operands depend on no image."""
    tensors = [*network.parameters(), *network.buffers()]
    constant = {x.untyped_storage()._cdata for x in tensors}
    found = []
    done = 0
    for use in recording.products:
        for operation in recording.operations[done : use.span[0]]:
            outputs = {x.storage for x in operation.outputs}
            if all(x.storage in constant for x in operation.inputs):
                constant |= outputs
            else:
                constant -= outputs
        done = max(done, use.span[0])
        left, right = use.operands
        found.append((left in constant, right in constant))
    return found
