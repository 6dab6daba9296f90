"""Find the first layer of a network and those that its outputs come from."""

from __future__ import annotations

from collections.abc import Iterable

from .record import Call, Recording, Value

#: Operations whose result holds all of its operands side by side.
JOINS = frozenset(
    'cat stack copy_ index_put index_put_ slice_scatter select_scatter'.split()
)


def end_layers(recording: Recording) -> list[str]:
    """Return the first layer, and those that the network's outputs come from.

    The layer of an output is the last one before it, whatever is computed
    in between, such as a scale, an activation or a change of shape. Outputs
    that are joined of several have several layers. An output that other
    layers read, too, such as the features of a stage, is no end, unless it
    is itself what a layer put out.

    If no output comes from a layer, the last layer that is called counts.

    Args:
        recording (Recording): A recorded pass. Layers that the scheme leaves
            in float count as layers.
    """
    calls = [c for c in recording.calls if recording.could_be_layer(c.module)]
    sources = _sources(recording, calls)
    read = {_content(value) for call in calls for value in call.inputs}
    own = {_content(value) for call in calls for value in call.outputs}
    last = sorted(
        {
            i
            for value in recording.calls[0].outputs
            if _content(value) in own or _content(value) not in read
            for i in sources.get(value.storage, ())
        }
    )
    found = [calls[i] for i in last] or calls[-1:]
    return list(dict.fromkeys(call.name for call in [calls[0], *found]))


def _content(value: Value) -> tuple[int, int]:
    """Return what tells the content of a memory at one moment."""
    return value.storage, value.version


def _sources(
    recording: Recording, calls: list[Call]
) -> dict[int, frozenset[int]]:
    """Return the last layers that the final content of memory comes from.

    Args:
        recording (Recording): The recorded pass.
        calls (list[Call]): Calls of layers, in order.

    Returns:
        dict: For each identifier of a memory the indices of these calls.
    """
    inside = {
        i: frozenset([k])
        for k, call in enumerate(calls)
        for i in range(*call.span)
    }
    sources: dict[int, frozenset[int]] = {}
    for i, operation in enumerate(recording.operations):
        found = inside.get(i)
        if found is None:
            before = [
                sources[x.storage]
                for x in operation.inputs
                if x.storage in sources
            ]
            found = _joined(before, operation.name in JOINS)
        if found:
            sources.update((x.storage, found) for x in operation.outputs)
    return sources


def _joined(
    before: Iterable[frozenset[int]], side_by_side: bool
) -> frozenset[int]:
    """Return the layers of a result from those of its operands.

    Of two operands that are added, such as those of a shortcut, the one
    with the later layer counts.
    """
    if side_by_side:
        return frozenset().union(*before)
    return max(before, key=max, default=frozenset())
