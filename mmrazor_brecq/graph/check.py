"""What cannot be quantized is refused or named before anything is done."""

from __future__ import annotations

import logging
from typing import Any

import torch
from mmengine.logging import print_log
from torch import nn

from ..layers import is_quantizable
from .record import Trace


def check_layers(model: nn.Module, trace: Trace) -> None:
    """Look at a network's layers before they are quantized.

    Args:
        model (nn.Module): The float network.
        trace (Trace): A recorded pass of it.

    Raises:
        ValueError: If it calls no convolution and no linear layer, or if
            a weight is not finite, or not of float32. Layers that stay in
            float and channels of zeros are only named in a warning.
    """
    called = {c.name for c in trace.calls if is_quantizable(c.module)}
    if not called:
        raise ValueError(
            f'{type(model).__name__} calls no convolution and no linear '
            'layer: there is nothing to quantize'
        )
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.conv._ConvTransposeNd):
            _warn(
                f'{name} is a transposed convolution, which is not '
                'supported: left in float'
            )
        elif name in called:
            _check_weight(name, module)
        elif is_quantizable(module):
            _warn(
                f'{name} is not called in the forward pass (its weight may '
                'be used without it): left in float'
            )


def _check_weight(name: str, layer: Any) -> None:
    if layer.weight.dtype != torch.float32:
        raise ValueError(
            f'The weight of {name!r} is of {layer.weight.dtype}, expected '
            'torch.float32: call `.float()` on the model'
        )
    if not layer.weight.isfinite().all():
        raise ValueError(
            f'The weight of {name!r} holds NaN or infinity: the checkpoint '
            'is broken'
        )
    empty = int((layer.weight.flatten(1).abs().amax(1) == 0).sum())
    if empty:
        _warn(
            f'{name} has {empty} output channels of zeros only; their step '
            'is set to 1'
        )


def _warn(message: str) -> None:
    print_log(message, 'current', logging.WARNING)
