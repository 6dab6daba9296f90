"""What a network is given: images, or images and a data sample of each.

Most networks take images alone. Detectors with queries or in two stages need
what a data sample of OpenMMLab says of an image, such as its size. This
module alone knows what such a sample is, and which networks take it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Optional, Union

import torch
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement, InstanceData
from torch import Tensor, nn

from ..functional import preserve_random_state
from .arguments import Arguments
from .queries import ask_for_last_layer, has_queries, show_last_layer
from .regions import fix_regions, has_regions, show_second_stage


@dataclass(frozen=True, eq=False)
class Samples:
    """Images, each with its data sample.

    It has what of a tensor of images is used: length, shape, device, some of
    the images, and parts. Each image keeps its own data sample.

    Attributes:
        images (Tensor): Preprocessed images, N x C x H x W.
        data (list): N data samples, which are never changed.
    """

    images: Tensor
    data: list[BaseDataElement]

    @property
    def shape(self) -> torch.Size:
        """Return the shape of the images."""
        return self.images.shape

    @property
    def device(self) -> torch.device:
        """Return the device of the images."""
        return self.images.device

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, which: Union[slice, Sequence[int]]) -> Samples:
        data = self.data
        chosen = (
            data[which]
            if isinstance(which, slice)
            else [data[i] for i in which]
        )
        return Samples(self.images[which], chosen)

    def split(self, size: int) -> list[Samples]:
        """Return parts of so many images, the last of which is the rest."""
        return [self[i : i + size] for i in range(0, len(self), size)]


#: What a network is given.
Inputs = Union[Tensor, Samples, Arguments]


def images_of(inputs: Inputs) -> Tensor:
    """Return the images of a network's inputs, N x C x H x W.

    Of several inputs it is the first one of real numbers.
    """
    if isinstance(inputs, Arguments):
        return inputs.main
    return inputs.images if isinstance(inputs, Samples) else inputs


def map_images(function: Callable[[Tensor], Tensor], inputs: Inputs) -> Inputs:
    """Return the inputs with a function applied to their images.

    Args:
        function (callable): From N x C x H x W to the same shape. Of several
            inputs it is given each.
        inputs (Tensor | Samples | Arguments): Preprocessed inputs.
    """
    if isinstance(inputs, Arguments):
        return inputs.map(function)
    if isinstance(inputs, Samples):
        return Samples(function(inputs.images), inputs.data)
    return function(inputs)


def has_samples(arguments: Iterable[Any]) -> bool:
    """Return whether an argument is a list of data samples."""
    return any(
        isinstance(x, (list, tuple))
        and any(isinstance(sample, BaseDataElement) for sample in x)
        for x in arguments
    )


def run_float(model: nn.Module, inputs: Inputs) -> Any:
    """Return the network's raw output, without post-processing.

    Args:
        model (nn.Module): A model of OpenMMLab, which is called with
            ``mode='tensor'``, or any other module.
        inputs (Tensor | Samples | Arguments): Preprocessed images, N x C x H
            x W, with data samples if the model needs them, or all that it
            takes.
    """
    if isinstance(inputs, Samples):
        return model(inputs.images, inputs.data, mode='tensor')
    if isinstance(inputs, Arguments):
        return model(*inputs.args, **inputs.kwargs)
    if isinstance(model, BaseModel):
        return model(inputs, mode='tensor')
    return model(inputs)


def inputs_for(
    network: nn.Module,
    images: Tensor,
    data: Optional[Sequence[BaseDataElement]] = None,
) -> Inputs:
    """Return images as a network takes them: alone, or as :class:`Samples`.

    Args:
        network (nn.Module): The float network, which is in evaluation mode
            afterwards.
        images (Tensor): Preprocessed images, N x C x H x W.
        data (list, optional): Their N data samples. By default each says
            that the image fills the tensor.

    Returns:
        Tensor | Samples: The images themselves if the network runs with
        images alone, or fails just the same with data samples.
    """
    if not isinstance(network, BaseModel):
        return images
    network.eval()
    unlabeled = _unlabeled(images, data)
    samples = Samples(images[:1], unlabeled[:1])
    alone = _failure(network, images[:1])
    if not alone:
        return images
    failure = _failure(network, samples)
    if not failure:
        return sampled(network, images, data)
    # The other failure is that of data samples that are missing.
    return images if failure == alone else Samples(images, unlabeled)


def sampled(
    network: nn.Module,
    images: Tensor,
    data: Optional[Sequence[BaseDataElement]] = None,
) -> Samples:
    """Return images with data samples, for a network that takes them.

    The arguments are those of :func:`inputs_for`. The data samples have no
    labels, but the regions of a second stage, if there is one.
    """
    data = _unlabeled(images, data)
    with torch.no_grad():
        data = fix_regions(network, images, data)
        return Samples(images, ask_for_last_layer(network, images, data))


def suit_samples(network: nn.Module, samples: Samples) -> None:
    """Let a network heed what is in data samples besides what its own code
    looks for. Without such samples it runs as ever.

    Args:
        network (nn.Module): The network, whose class may change in place.
        samples (Samples): What :func:`sampled` returned for it.
    """
    if has_regions(samples.data):
        show_second_stage(network)
    if has_queries(samples.data):
        show_last_layer(network)


def _failure(network: nn.Module, inputs: Inputs) -> str:
    """Return why a network cannot run on such inputs, '' if it can."""
    with torch.no_grad(), preserve_random_state(inputs.device):
        try:
            run_float(network, inputs)
        except Exception as error:  # It is called in a way it may not know.
            return repr(error)
    return ''


def _unlabeled(
    images: Tensor, data: Optional[Sequence[BaseDataElement]]
) -> list[BaseDataElement]:
    """Return a data sample without labels for each image.

    Nobody needs the labels, but a network may ask for them: lists are empty.
    """
    if data is None:
        return [_plain(i, images.shape) for i in range(len(images))]
    return [_without_labels(sample) for sample in data[: len(images)]]


def _without_labels(sample: BaseDataElement) -> BaseDataElement:
    new = type(sample)(metainfo=sample.metainfo)
    for key, value in sample.items():
        if not key.startswith(('gt_', 'ignored')):
            setattr(new, key, value)
        elif isinstance(value, InstanceData):
            setattr(new, key, type(value)())
    return new


def _plain(index: int, shape: torch.Size) -> BaseDataElement:
    """Return the data sample of an image that fills its tensor."""
    keys = ('img_shape', 'ori_shape', 'pad_shape', 'batch_input_shape')
    about = dict.fromkeys(keys, tuple(shape[-2:]))
    return BaseDataElement(
        metainfo=dict(about, scale_factor=(1.0, 1.0), img_id=index),
        gt_instances=InstanceData(),
    )
