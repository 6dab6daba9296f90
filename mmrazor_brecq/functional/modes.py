"""Work that comes to the same in any state of the caller's, and leaves it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

#: Decorates what learns, or makes tensors that outlive the call: called
#: under ``torch.no_grad`` or ``torch.inference_mode`` it does as without.
#: A generator works under it between two of its values, too.
in_grad_mode = torch.inference_mode(False)


def to_normal_tensor(tensor: Tensor) -> Tensor:
    """Return a tensor that gradients can pass: the same one, or a copy of
    one that was made in inference mode.
    """
    return tensor.clone() if tensor.is_inference() else tensor


@torch.inference_mode(False)
def make_tensors_normal(network: nn.Module) -> None:
    """Replace the parameters and buffers that were made in inference mode.

    Args:
        network (nn.Module): It is changed in place.
    """
    for module in network.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.is_inference():
                module._parameters[name] = nn.Parameter(
                    parameter.detach().clone(), parameter.requires_grad
                )
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = to_normal_tensor(buffer)


@contextmanager
def preserve_random_state(device: torch.device) -> Iterator[None]:
    """Within it numbers are drawn from a copy of the caller's random state.

    Args:
        device (torch.device): Where they are drawn, besides the CPU.
    """
    if device.type == 'cpu':
        with torch.random.fork_rng(devices=[]):
            yield
    else:
        with torch.random.fork_rng([device], device_type=device.type):
            yield
