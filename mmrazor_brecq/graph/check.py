"""What cannot be quantized is refused or named before anything is done."""

from __future__ import annotations

import logging
from typing import Any

import torch
from mmengine.logging import print_log
from torch import nn

from ..functional import pack_extra
from .account import Account, take_account
from .record import Trace


def check_layers(model: nn.Module, trace: Trace) -> Account:
    """Look at a network's layers before they are quantized.

    Args:
        model (nn.Module): The float network.
        trace (Trace): A recorded pass of it.

    Returns:
        Account: What will be quantized, and what not.

    Raises:
        ValueError: If it calls no convolution and no linear layer that can
            be quantized, or if a weight is not finite, or not of float32,
            or a module has a state that no checkpoint can hold.
            What stays in float and channels of zeros are only named in a
            warning.
    """
    pack_extra(model.state_dict())
    account = take_account(model, trace)
    if not account.quantized:
        raise ValueError(
            f'{type(model).__name__} calls no convolution and no linear '
            'layer: there is nothing to quantize'
            + ''.join(
                f'; {name} is {what}'
                for name, what in account.left_float.items()
            )
        )
    for name, module in model.named_modules():
        if name in account.quantized:
            _check_weight(name, module)
    for name in account.products:
        _warn(f'{name} is {account.left_float[name]}: left in float')
    return account


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
