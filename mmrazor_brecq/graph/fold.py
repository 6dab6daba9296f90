"""Batch normalisation folded into the layer before it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..layers import is_quantizable
from .record import Trace


def _is_frozen_norm(module: Any) -> bool:
    """Whether it normalises by statistics that it holds, and no more."""
    if list(module.children()):
        return False
    if isinstance(module, _BatchNorm):
        return module.running_mean is not None
    return all(
        isinstance(getattr(module, name, None), torch.Tensor)
        for name in ('weight', 'bias', 'running_mean', 'running_var')
    )


def _weight(layer: Any) -> Any:
    return layer.weight


@torch.no_grad()
def _fold(layer: Any, norm: Any) -> None:
    gain = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        gain = gain * norm.weight.double()
    shift = -norm.running_mean.double()
    if layer.bias is not None:
        shift = shift + layer.bias.double()
    bias = shift * gain
    if norm.bias is not None:
        bias = bias + norm.bias.double()
    column = gain.reshape(-1, *[1] * (layer.weight.dim() - 1))
    layer.weight.copy_(layer.weight.double() * column)
    layer.bias = nn.Parameter(bias.to(layer.weight))


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
        if not _is_frozen_norm(norm):
            continue
        layers = {producer.get(use.inputs[0]) for use in uses}
        layer = layers.pop()
        if layers or layer is None:
            continue
        outputs = [call.outputs[0] for call in calls[layer]]
        if given_out.isdisjoint(outputs) and all(
            trace.users.get(out) == {norm} for out in outputs
        ):
            _fold(layer, norm)
            folded.append(uses[0].name)
    for name in folded:
        parent, _, child = name.rpartition('.')
        setattr(model.get_submodule(parent), child, nn.Identity())
    return folded
