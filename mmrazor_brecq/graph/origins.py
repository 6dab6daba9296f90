"""Where the values of a recorded pass come from."""

from __future__ import annotations

from typing import Optional

from .equalize import MOVES
from .record import Operation, Recording, Value


class Origins:
    """The operations that made the values of a recorded pass.

    Attributes:
        made (dict): For each value, the operation.
        layers (set[str]): Names of the layers that have a weight.

    Args:
        recording (Recording): The pass.
    """

    def __init__(self, recording: Recording) -> None:
        self.made: dict[Value, Operation] = {}
        for operation in recording.operations:
            self.made.update(dict.fromkeys(results(operation), operation))
        self.layers = {
            call.name
            for call in recording.calls
            if recording.has_weight(call.module)
        }

    def layer(self, value: Value) -> Optional[str]:
        """Return the name of the layer that put a value out, if one did."""
        made = self.made.get(value)
        return made.caller if made and made.caller in self.layers else None

    def before_moves(self, value: Value) -> Value:
        """Return the value whose elements another one has."""
        while (
            (made := self.made.get(value)) is not None
            and made.name in MOVES
            and made.caller not in self.layers
        ):
            value = made.inputs[0]
        return value


def results(operation: Operation) -> tuple[Value, ...]:
    """Return what an operation leaves behind.

    A write counts once the operation is over, which is after it is recorded.
    """
    return tuple(
        value._replace(version=value.version + (value in operation.inputs))
        for value in operation.outputs
    )
