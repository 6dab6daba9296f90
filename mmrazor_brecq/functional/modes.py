"""Independence of the caller's grad mode, inference mode and random state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

#: Decorates functions that learn, or whose tensors outlive the call: they
#: work the same under the caller's ``torch.no_grad`` or
#: ``torch.inference_mode``. It covers a generator between two values, too.
in_grad_mode = torch.inference_mode(False)


def to_normal_tensor(tensor: Tensor) -> Tensor:
    """Return a tensor that autograd can save.

    Returns:
        Tensor: The same tensor, or a copy if it was made in inference mode.
    """
    return tensor.clone() if tensor.is_inference() else tensor


@torch.inference_mode(False)
def make_tensors_normal(network: nn.Module) -> None:
    """Replace parameters and buffers that were made in inference mode.

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
    """Return a context whose random draws leave the caller's state alone.

    Args:
        device (torch.device): Device of the draws, besides the CPU.
    """
    if device.type == 'cpu':
        with torch.random.fork_rng(devices=[]):
            yield
    else:
        with torch.random.fork_rng([device], device_type=device.type):
            yield
