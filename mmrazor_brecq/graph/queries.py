"""Detectors with queries: their head looks at the last layer of the decoder.

mmdet's DETR gives its head what each layer of the decoder says, the layers
before the images. Only the last one counts when it predicts. Here the head
gets that one alone, images first, as all other modules do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from ..layers import MixedIn, mix_in

#: Mark of the data samples with which the head sees the last layer alone.
KEY = 'last_layer_alone'


class OnLastLayer(MixedIn):
    """Mixin of a detector whose data samples may ask for the last layer."""

    def _forward(self, batch_inputs: Tensor, batch_data_samples: Any) -> Any:
        network: Any = self
        if not all(KEY in sample for sample in batch_data_samples or [()]):
            return super()._forward(  # type: ignore[misc]
                batch_inputs, batch_data_samples
            )
        found = network.forward_transformer(
            network.extract_feat(batch_inputs), batch_data_samples
        )
        (layers,) = found.values()
        return network.bbox_head.forward(layers[-1])


def show_last_layer(network: nn.Module) -> None:
    """Let the head of a detector see the last layer if its samples ask."""
    mix_in(OnLastLayer, network)


def has_queries(data: Sequence[BaseDataElement]) -> bool:
    """Return whether data samples ask for the last layer alone."""
    return all(KEY in sample for sample in data)


def ask_for_last_layer(
    network: Any, images: Tensor, data: Sequence[BaseDataElement]
) -> list[BaseDataElement]:
    """Return data samples that ask for the last layer, if there are layers.

    Args:
        network (nn.Module): The float network, in evaluation mode.
        images (Tensor): Preprocessed images, N x C x H x W.
        data (list): Their N data samples.

    Returns:
        list: The data samples themselves if the head of the network takes
        something else.
    """
    if not hasattr(network, 'forward_transformer'):
        return [*data]
    features = network.extract_feat(images[:1])
    found = network.forward_transformer(features, [*data[:1]])
    if [*found] != ['hidden_states'] or found['hidden_states'].dim() != 4:
        return [*data]
    marked = [sample.new() for sample in data]
    for sample in marked:
        sample.set_metainfo({KEY: True})
    return marked
