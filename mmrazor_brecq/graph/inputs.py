"""Which networks and images can be taken at all."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import AfterValidator, Field
from torch import Tensor, nn
from torch.nn.parameter import is_lazy


def _usable(network: nn.Module) -> nn.Module:
    """Refuse a network whose modules or weights nobody can look at."""
    for name, module in network.named_modules():
        # A network that is itself scripted is told of where it is unwrapped.
        if name and isinstance(module, torch.jit.ScriptModule):
            raise ValueError(
                f'a network of plain modules, and {name!r} in it is scripted '
                'or traced: put back the one that it was made from'
            )
    tensors = [*network.named_parameters(), *network.named_buffers()]
    for name, tensor in tensors:
        if is_lazy(tensor):
            raise ValueError(
                f'a network whose weights have a shape, and {name!r} has '
                'none: run an image through it first'
            )
        if tensor.is_meta:
            raise ValueError(
                f'a network that has its weights, and {name!r} is on the '
                'meta device: load a checkpoint first'
            )
    return network


def _whole(images: Tensor) -> Tensor:
    """Refuse tensors that hold no images."""
    if not images.is_floating_point():
        raise ValueError(
            f'a floating-point tensor of preprocessed images, and it is of '
            f'{images.dtype}: normalize them as the network wants them'
        )
    if images.is_meta or images.layout is not torch.strided:
        raise ValueError(
            'a dense tensor with values, and it is '
            + ('on the meta device' if images.is_meta else str(images.layout))
        )
    if images.dim() < 2 or 0 in images.shape[1:]:
        raise ValueError(
            'N x C x H x W images, and its shape is '
            f'{" x ".join(map(str, images.shape)) or "that of one number"}'
        )
    return images


#: A trained network.
Network = Annotated[
    nn.Module,
    AfterValidator(_usable),
    Field(description='a trained network, an instance of torch.nn.Module'),
]
#: Preprocessed images.
Images = Annotated[
    Tensor,
    AfterValidator(_whole),
    Field(
        description='a floating-point tensor of preprocessed images, '
        'N x C x H x W'
    ),
]
