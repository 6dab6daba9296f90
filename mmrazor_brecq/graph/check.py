"""Refuse or warn of what cannot be quantized, before anything is done."""

from __future__ import annotations

import logging
from typing import Optional

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from ..functional import pack_extra
from .account import Account, take_account
from .record import LEFT_FLOAT, Recording

#: Largest value of a parameter: its squares, summed over a network, are
#: still finite in float32.
LARGEST = 1e16


def check_layers(model: nn.Module, recording: Recording) -> Account:
    """Check a network's layers before they are quantized.

    A warning names the layers that stay in float, channels of zeros, and
    variances of 0.

    Args:
        model (nn.Module): The float network.
        recording (Recording): A recorded pass of it.

    Returns:
        Account: What will be quantized, and what not.

    Raises:
        ValueError: If the network calls no layer that can be quantized, or
            calls a convolution without a batch of images; if a weight is not
            float32; if a module has a state that no checkpoint can store; or
            if a parameter or statistic is not finite or above
            :data:`LARGEST`, or a variance is below 0.
    """
    pack_extra(model.state_dict())
    account = take_account(model, recording)
    if not account.quantized:
        raise ValueError(
            f'{type(model).__name__} calls no convolution and no linear '
            'layer: there is nothing to quantize'
            + ''.join(
                f'; {name} is {reason}'
                for name, reason in account.left_float.items()
            )
        )
    for call in recording.calls:
        if not isinstance(call.module, nn.modules.conv._ConvNd):
            continue
        dims = {value.dims for value in (*call.inputs, *call.outputs)}
        if max(dims, default=9) < call.module.weight.dim():
            raise ValueError(
                f'{call.name!r} gets no batch of images, but a tensor of '
                f'{max(dims)} dimensions: give N x C x H x W'
            )
    weights = {
        name: module.get_parameter('weight')
        for name, module in model.named_modules()
        if name in account.quantized
    }
    for name, weight in weights.items():
        _check_weight(name, weight)
    _warn_of_channels(
        {n: w.flatten(1).abs().amax(1) == 0 for n, w in weights.items()},
        'have weights of zeros only: their scale is set to 1',
    )
    for call in recording.calls:
        _check_values(call.name, call.module)
    _warn_of_channels(
        {
            c.name: v == 0
            for c in recording.calls
            if (v := _variance(c.module)) is not None
        },
        'have a running_var of 0, which multiplies their values by a hundred '
        'or more: common where their input is always 0, otherwise check that '
        'the network is trained',
    )
    for name in account.products:
        if account.left_float[name] == LEFT_FLOAT:
            continue
        warn(f'{name} is {account.left_float[name]}: left in float')
    return account


def _check_weight(name: str, weight: Tensor) -> None:
    """Refuse a weight that is not float32."""
    if weight.dtype != torch.float32:
        raise ValueError(
            f'The weight of {name!r} is of {weight.dtype}, expected '
            'torch.float32: call `.float()` on the model'
        )


def _check_values(name: str, module: nn.Module) -> None:
    """Refuse parameters and statistics that make every output useless.

    Other buffers are not checked: masks, for instance, are often infinite.
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
                f'The {key} of {name!r} holds {largest:.3g}, expected at '
                f'most {LARGEST:g}, whose square is still finite: the '
                'checkpoint is broken'
            )
    variance = _variance(module)
    if variance is not None and (variance < 0).any():
        raise ValueError(
            f'The running_var of {name!r} holds {float(variance.min()):.3g}, '
            'expected variances of 0 or more: the checkpoint is broken'
        )


def _variance(module: nn.Module) -> Optional[Tensor]:
    """Return the running variance of a batch norm, C, None without one."""
    variance = getattr(module, 'running_var', None)
    return variance if isinstance(variance, Tensor) else None


def _warn_of_channels(found: dict[str, Tensor], text: str) -> None:
    """Log one warning of channels that something holds for.

    Args:
        found (dict[str, Tensor]): By the name of a module, whether it holds
            for each of its channels.
        text (str): What holds, as the end of a sentence.
    """
    counts = {name: int(x.sum()) for name, x in found.items() if x.any()}
    if counts:
        first, *more = counts
        where = repr(first) + (
            f' and {len(more)} more modules' if more else ''
        )
        warn(f'{sum(counts.values())} channels of {where} {text}')


def warn(message: str) -> None:
    """Log a warning."""
    print_log(message, 'current', logging.WARNING)
