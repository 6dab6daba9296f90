"""Check which networks and images can be quantized at all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import AfterValidator, Field
from torch import Tensor, nn
from torch.nn.parameter import is_lazy


def _check_network(network: nn.Module) -> nn.Module:
    """Refuse a network whose modules or weights cannot be read."""
    for name, module in network.named_modules():
        # `unwrap` refuses a network that is itself scripted.
        if name and isinstance(module, torch.jit.ScriptModule):
            raise ValueError(
                f'a network of plain modules, and {name!r} in it is scripted '
                'or traced: use the module that it was made from'
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


def check_images(images: Tensor) -> Tensor:
    """Refuse a tensor that has no preprocessed images."""
    if not images.is_floating_point():
        raise ValueError(
            f'a floating-point tensor of preprocessed images, and it is of '
            f'{images.dtype}: normalize them as the network expects'
        )
    if images.is_meta or images.layout is not torch.strided:
        raise ValueError(
            'a dense tensor with values, and it is '
            + ('on the meta device' if images.is_meta else str(images.layout))
        )
    if images.dim() < 2 or 0 in images.shape[1:]:
        shape = ' x '.join(map(str, images.shape))
        raise ValueError(
            'N x C x H x W images, and its shape is '
            f'{shape or "that of a single number"}'
        )
    return images


def check_batch(network: nn.Module, images: Tensor) -> None:
    """Refuse a single image in place of a batch.

    Args:
        network (nn.Module): The network.
        images (Tensor): What should be N x C x H x W images.

    Raises:
        ValueError: If the tensor has three dimensions, and the first one is
            the channels that the first convolution takes.
    """
    convs = (m for m in network.modules() if isinstance(m, nn.Conv2d))
    first = next(convs, None)
    if first and images.dim() == 3 and len(images) == first.in_channels:
        shape = ' x '.join(map(str, images.shape))
        raise ValueError(
            f'The images have the shape {shape}, which is one image, C x H x '
            'W: expected N x C x H x W, as of torch.stack(list_of_images), '
            'and a few hundred images if there are'
        )


def _check_batches(images: Any) -> Any:
    """Refuse what is neither a tensor of images nor gives batches."""
    if isinstance(images, Tensor):
        if images.dtype in (torch.int64, torch.int32):
            return images  # Tokens, if the network has a table of them.
        return check_images(images)
    # An array gives rows of numbers, where batches are tensors.
    gives_none = isinstance(images, (str, bytes, Mapping, np.ndarray))
    if gives_none or not isinstance(images, Iterable):
        raise ValueError(
            'a floating-point tensor of preprocessed images, N x C x H x W, '
            'or a data loader or other batches of them, and it is a '
            f'{type(images).__name__}'
        )
    return images


#: Type of a trained network.
Network = Annotated[
    nn.Module,
    AfterValidator(_check_network),
    Field(description='a trained network, an instance of torch.nn.Module'),
]
#: Type of preprocessed images.
Images = Annotated[
    Tensor,
    AfterValidator(check_images),
    Field(
        description='a floating-point tensor of preprocessed images, '
        'N x C x H x W'
    ),
]
#: Type of preprocessed images, or batches of them.
ImageBatches = Annotated[
    Any,
    AfterValidator(_check_batches),
    Field(
        description='a floating-point tensor of preprocessed images, '
        'N x C x H x W, or a data loader or other batches of them'
    ),
]
