"""What cannot be quantized is refused or named before anything is done."""

from __future__ import annotations

import logging
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from ..functional import pack_extra
from .account import Account, take_account
from .record import Recording

#: Values whose squares, summed over a network, are finite in float32.
LARGEST = 1e16


def check_layers(model: nn.Module, recording: Recording) -> Account:
    """Look at a network's layers before they are quantized.

    Args:
        model (nn.Module): The float network.
        recording (Recording): A recorded pass of it.

    Returns:
        Account: What will be quantized, and what not.

    Raises:
        ValueError: If it calls no convolution and no linear layer that can
            be quantized, or one without a batch of images, or if a weight is
            not of float32, or a module has a state that no checkpoint can
            hold, or a parameter or statistic of one that is called is not
            finite, so large that its square is not, or a variance below 0.
            What stays in float and channels of zeros are only named in a
            warning.
    """
    pack_extra(model.state_dict())
    account = take_account(model, recording)
    if not account.quantized:
        raise ValueError(
            f'{type(model).__name__} calls no convolution and no linear '
            'layer: there is nothing to quantize'
            + ''.join(
                f'; {name} is {what}'
                for name, what in account.left_float.items()
            )
        )
    for call in recording.calls:
        module: Any = call.module
        kernel = isinstance(module, nn.modules.conv._ConvNd)
        dims = {value.dims for value in (*call.inputs, *call.outputs)}
        if kernel and max(dims, default=9) < module.weight.dim():
            raise ValueError(
                f'{call.name!r} gets no batch of images, but one of '
                f'{max(dims)} dimensions: give N x C x H x W'
            )
    for name, module in model.named_modules():
        if name in account.quantized:
            _check_weight(name, module)
    for call in recording.calls:
        _check_numbers(call.name, call.module)
    for name in account.products:
        warn(f'{name} is {account.left_float[name]}: left in float')
    return account


def _check_weight(name: str, layer: Any) -> None:
    if layer.weight.dtype != torch.float32:
        raise ValueError(
            f'The weight of {name!r} is of {layer.weight.dtype}, expected '
            'torch.float32: call `.float()` on the model'
        )
    empty = int((layer.weight.flatten(1).abs().amax(1) == 0).sum())
    if empty:
        warn(
            f'{name} has {empty} output channels of zeros only; their step '
            'is set to 1'
        )


def _check_numbers(name: str, module: nn.Module) -> None:
    """Refuse parameters and statistics that spoil all that comes of them.

    Buffers of other kinds may hold anything: masks are often infinite.
    """
    statistics = {
        key: getattr(module, key, None)
        for key in ('running_mean', 'running_var')
    }
    for key, value in {**module._parameters, **statistics}.items():
        if not isinstance(value, Tensor) or not value.is_floating_point():
            continue
        if not value.isfinite().all():
            raise ValueError(
                f'The {key} of {name!r} holds NaN or infinity: the '
                'checkpoint is broken'
            )
        largest = float(value.detach().abs().max()) if value.numel() else 0.0
        if largest > LARGEST:
            raise ValueError(
                f'The {key} of {name!r} holds {largest:.3g}, expected '
                f'{LARGEST:g} at the most, the square of which is still a '
                'number: the checkpoint is broken'
            )
    variance = statistics['running_var']
    if not isinstance(variance, Tensor):
        return
    if (variance < 0).any():
        raise ValueError(
            f'The running_var of {name!r} holds {float(variance.min()):.3g}, '
            'expected variances of 0 or more: the checkpoint is broken'
        )
    if still := int((variance == 0).sum()):
        warn(
            f'The running_var of {name!r} is 0 in {still} channels, which '
            'multiplies what comes there a hundredfold and more: see whether '
            'the network was trained'
        )


def warn(message: str) -> None:
    """Log a warning."""
    print_log(message, 'current', logging.WARNING)
