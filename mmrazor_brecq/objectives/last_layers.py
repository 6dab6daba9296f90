"""Find the last layer before each output of a network."""

from __future__ import annotations

from typing import Optional

from torch import Tensor, nn

from ..graph import Inputs, Recording, record
from .gradients import real_outputs


def last_layers(
    network: nn.Module, image: Inputs, count: int
) -> list[Optional[nn.Module]]:
    """Return the last layer before each of ``count`` real outputs.

    Args:
        network (nn.Module): The network, in evaluation mode.
        image (Tensor | Samples | Arguments): One preprocessed image.
        count (int): Number of its real outputs.

    Returns:
        list[nn.Module, optional]: The layers, None where there is none.
    """
    outputs: list[Tensor] = []
    hook = network.register_forward_hook(
        lambda module, args, out: outputs.extend(real_outputs(out))
    )
    try:
        recording = record(network, image)
    finally:
        hook.remove()
    layers = [_layer_before(recording, out) for out in outputs]
    return layers if len(layers) == count else [None] * count


def _layer_before(recording: Recording, out: Tensor) -> Optional[nn.Module]:
    """Return the layer with the fewest operations between it and a tensor.

    It searches breadth-first, from the tensor back through the operations
    that computed it.
    """
    layers = {
        value.tensor: call.module
        for call in recording.calls
        if hasattr(call.module, 'out_features')
        or hasattr(call.module, 'out_channels')
        for value in call.outputs
    }
    operands = {
        value.tensor: [x.tensor for x in operation.inputs]
        for operation in recording.operations
        for value in operation.outputs
    }
    queue, seen = [out._cdata], {out._cdata}
    for tensor in queue:  # The loop appends to it.
        if tensor in layers:
            return layers[tensor]
        before = [x for x in operands.get(tensor, ()) if x not in seen]
        seen.update(before)
        queue += before
    return None
