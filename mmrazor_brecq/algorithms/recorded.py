"""The recorded pass that a network is prepared by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Optional

import torch
from torch import Tensor, nn

from ..functional import make_tensors_normal
from ..graph import (
    Arguments,
    Inputs,
    Recording,
    Samples,
    inputs_for,
    make_plain,
    record,
    show_calls,
    show_products,
    suit_samples,
)
from ..runtime.attention import run_through_layers


def recorded(
    network: nn.Module,
    example: Inputs,
    state: Optional[Mapping[str, Tensor]] = None,
) -> tuple[Inputs, Recording]:
    """Make a network consist of plain layers, and record a pass of it.

    Args:
        network (nn.Module): The float network. It is changed in place.
        example (Tensor | Samples | Arguments): N x ... preprocessed inputs.
        state (dict, optional): State that will be loaded. It then decides
            which calls and products are layers.

    Returns:
        tuple: What the network was given, with data samples if it needs
        them, and the recorded pass.
    """
    network.eval()
    make_tensors_normal(network)
    run_through_layers(network)
    if isinstance(example, Tensor):
        example = (
            inputs_for(network, example)
            if example.is_floating_point()
            else Arguments((example,))
        )
    if isinstance(example, Samples):
        suit_samples(network, example)
    make_plain(network, example)
    recording = _record_in_fast_order(network, example)
    if show_calls(network, recording, state):
        recording = record(network, example)
    if show_products(network, recording, state):
        recording = record(network, example)
    return example, recording


def keep_form(recording: Recording, state: Mapping[str, Tensor]) -> set[str]:
    """Leave in float what a checkpoint has in float.

    Args:
        recording (Recording): Its ``unfit`` gets the layers.
        state (dict): State of a quantized network.

    Returns:
        set[str]: Names of the batch norms that the checkpoint has.
    """
    quantized = _modules_with(state, 'weight_quantizer.scale')
    for side in ('left', 'right'):
        quantized |= _modules_with(state, f'{side}_quantizer.scale')
    for call in recording.calls:
        if recording.is_layer(call.module) and call.name not in quantized:
            recording.unfit[call.module] = 'in float in the checkpoint'
    return _modules_with(state, 'running_mean')


def _modules_with(state: Mapping[str, Tensor], key: str) -> set[str]:
    """Return the names of the modules that have a key in a state."""
    return {
        name[: -len(key)].rstrip('.')
        for name in state
        if f'.{name}'.endswith(f'.{key}')
    }


def _record_in_fast_order(network: nn.Module, example: Inputs) -> Recording:
    """Record a pass, with channels last in memory where that works.

    Channels last is faster, but code such as ``x.view(len(x), -1)`` works
    in the usual order only.
    """

    def reorder(order: torch.memory_format) -> None:
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.data = module.weight.data.to(memory_format=order)

    reorder(torch.channels_last)
    try:
        return record(network, example)
    except RuntimeError:
        reorder(torch.contiguous_format)
    try:
        return record(network, example)
    except NotImplementedError:  # It says what is not there.
        raise
    except (AssertionError, IndexError, RuntimeError, ValueError) as error:
        reason = str(error).strip().split('\n')[0]
        raise ValueError(
            f'{type(network).__name__} takes no images of the shape '
            f'{tuple(example.shape[1:])} ({type(error).__name__}: {reason}): '
            'give N x C x H x W images of the size that it was trained on'
        ) from error
