"""Batch normalisation folded into the layer before it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..layers import is_quantizable
from .record import Trace


def _is_frozen_norm(module: Any, dims: int) -> bool:
    """Whether it normalises by statistics that it holds, and no more.

    Args:
        module (nn.Module): Any.
        dims (int): Dimensions of its input.
    """
    if isinstance(module, _BatchNorm):
        if module.running_mean is None:
            return False
    elif not all(
        isinstance(getattr(module, name, None), Tensor)
        for name in ('weight', 'bias', 'running_mean', 'running_var')
    ):
        return False
    gain, shift = _affine(module)
    shape = (2, len(gain), *[2] * (dims - 2))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    out = module(x.to(module.running_mean)).double()
    x = x.to(out) * _column(gain, dims, 1) + _column(shift, dims, 1)
    return out.shape == x.shape and torch.allclose(
        out, x, rtol=1e-3, atol=1e-3 * float(x.abs().max())
    )


def _affine(norm: Any) -> tuple[Tensor, Tensor]:
    """What it multiplies each channel by, and then adds."""
    gain = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        gain = gain * norm.weight.double()
    shift = -norm.running_mean.double() * gain
    if norm.bias is not None:
        shift = shift + norm.bias.double()
    return gain, shift


def _column(values: Tensor, dims: int, channel: int) -> Tensor:
    """``values`` along dimension ``channel`` of ``dims``."""
    return values.reshape([-1 if d == channel else 1 for d in range(dims)])


def _weight(layer: Any) -> Any:
    return layer.weight


def _fold(layer: Any, norm: Any) -> None:
    gain, bias = _affine(norm)
    if layer.bias is not None:
        bias = bias + layer.bias.double() * gain
    column = _column(gain, layer.weight.dim(), 0)
    layer.weight.copy_(layer.weight.double() * column)
    layer.bias = nn.Parameter(bias.to(layer.weight))


@torch.no_grad()
def fold_batch_norm(model: nn.Module, trace: Trace) -> list[str]:
    """Fold every BatchNorm whose input is what a Conv or Linear put out.

    The same tensor object, that is, with nothing written to it since and
    nothing else computed from it, on each of their calls; all others stay.
    A folded norm becomes an ``nn.Identity`` under its own name.

    Args:
        model (nn.Module): The model, changed in place.
        trace (Trace): A recorded pass of it.

    Returns:
        list[str]: Names of the norms that are folded.
    """
    calls = trace.by_module()
    given_out = set(trace.calls[0].outputs)
    producer = {
        call.outputs[0]: call.module
        for call in trace.calls
        if is_quantizable(call.module)
        and len(call.outputs) == 1
        and call.outputs[0].dims == _weight(call.module).dim()
    }
    folded = []
    for norm, uses in calls.items():
        layers = {
            producer.get(use.inputs[0]) if use.inputs else None for use in uses
        }
        layer = layers.pop()
        if layers or layer is None:
            continue
        outputs = [call.outputs[0] for call in calls[layer]]
        if (
            given_out.isdisjoint(outputs)
            and all(trace.users.get(out) == {norm} for out in outputs)
            and _is_frozen_norm(norm, outputs[0].dims)
        ):
            _fold(layer, norm)
            folded.append(uses[0].name)
    for name in folded:
        parent, _, child = name.rpartition('.')
        setattr(model.get_submodule(parent), child, nn.Identity())
    return folded
