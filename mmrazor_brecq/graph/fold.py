"""Fold batch normalization into the layer before it."""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Optional, Union, cast

import torch
from mmengine.logging import print_log
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from .compare import Rewrite, apply_checked
from .record import Recording

#: A layer that a norm folds into.
Layer = Union[_ConvNd, nn.Linear]


@torch.no_grad()
def _has_fixed_statistics(module: nn.Module, dims: int) -> bool:
    """Return whether a module normalizes by stored statistics, and no more.

    Args:
        module (nn.Module): Any module.
        dims (int): Number of dimensions of its input.
    """
    if module.training or 'forward' in vars(module):
        return False
    if isinstance(module, _BatchNorm):
        if module.running_mean is None:
            return False
    elif not all(
        isinstance(getattr(module, name, None), Tensor)
        for name in ('weight', 'bias', 'running_mean', 'running_var')
    ):
        return False
    norm = cast(_BatchNorm, module)
    factor, offset = _affine(norm)
    shape = (2, len(factor), *[2] * (dims - 2))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    # Not by a call of the module: hooks of the network see only its values.
    out = norm.forward(x.to(norm.running_mean)).double()
    x = x.to(out) * _along(factor, dims, 1) + _along(offset, dims, 1)
    return out.shape == x.shape and torch.allclose(
        out, x, rtol=1e-3, atol=1e-3 * float(x.abs().max())
    )


def _affine(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Return the factor and the offset of each channel, in float64."""
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None and variance is not None
    factor = (variance.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        factor = factor * norm.weight.double()
    offset = -mean.double() * factor
    if norm.bias is not None:
        offset = offset + norm.bias.double()
    return factor, offset


def _along(values: Tensor, dims: int, channel: int) -> Tensor:
    """Return a vector reshaped to ``dims`` dimensions, all but one of 1."""
    return values.reshape([-1 if d == channel else 1 for d in range(dims)])


class Fold(Rewrite):
    """Rewrite that folds a norm into a layer; the norm becomes an identity.

    Args:
        name (str): Name of the norm.
        layer (nn.Module): The convolution or linear layer.
        norm (nn.Module): A norm with stored statistics.
    """

    def __init__(self, name: str, layer: Layer, norm: _BatchNorm) -> None:
        super().__init__(name)
        self.layer = layer
        self.norm = norm
        self.weight, self.bias = layer.weight.data, layer.bias
        self.norm_class = type(norm)
        self.norm_tensors = norm._parameters, norm._buffers

    @torch.no_grad()
    def apply(self) -> None:
        """Fold the norm.

        It stays the same object and changes its class, so that it does
        nothing wherever it is called.
        """
        layer, norm = self.layer, self.norm
        factor, bias = _affine(norm)
        if layer.bias is not None:
            bias = bias + layer.bias.double() * factor
        weight = layer.weight.data
        column = _along(factor, weight.dim(), 0)
        # In new memory, since another weight may share the old one.
        layer.weight.data = weight.clone().copy_(weight.double() * column)
        layer.bias = nn.Parameter(bias.to(weight))
        norm.__class__ = nn.Identity  # type: ignore[assignment]
        norm._parameters, norm._buffers = {}, {}

    def undo(self) -> None:
        """Restore the layer and the norm."""
        self.layer.weight.data, self.layer.bias = self.weight, self.bias
        self.norm.__class__ = self.norm_class
        self.norm._parameters, self.norm._buffers = self.norm_tensors


def find_folds(model: nn.Module, recording: Recording) -> list[Fold]:
    """Find the norms whose input is the output of a layer.

    On each call of the norm its input is the tensor object that the layer
    returned, nothing was written to it, and nothing else computes with it.

    Args:
        model (nn.Module): The network, in evaluation mode.
        recording (Recording): A recorded pass of it.
    """
    calls = recording.by_module()
    network_outputs = set(recording.calls[0].outputs)
    layer_of = {
        call.outputs[0]: cast(Layer, call.module)
        for call in recording.calls
        if recording.has_weight(call.module)
        and len(call.outputs) == 1
        and call.outputs[0].dims == cast(Layer, call.module).weight.dim()
    }
    folds = []
    for norm, uses in calls.items():
        layers = {
            layer_of.get(use.inputs[0]) if use.inputs else None for use in uses
        }
        layer = layers.pop()
        if layers or layer is None:
            continue
        outputs = [call.outputs[0] for call in calls[layer]]
        if (
            network_outputs.isdisjoint(outputs)
            and all(recording.users.get(out) == {norm} for out in outputs)
            and recording.readers(layer.weight) == {layer}
            and _has_fixed_statistics(norm, outputs[0].dims)
        ):
            folds.append(Fold(uses[0].name, layer, cast(_BatchNorm, norm)))
    return folds


def fold_batch_norm(
    model: nn.Module,
    recording: Recording,
    staying: Optional[Collection[str]] = None,
) -> list[str]:
    """Fold every BatchNorm that can go into the layer before it.

    The network is compared with itself before, on the inputs of the
    recording. A norm whose folding would change the outputs stays, and a
    warning names it. A folded norm becomes an ``nn.Identity`` of the same
    name.

    Args:
        model (nn.Module): The network; it is changed in place.
        recording (Recording): A recorded pass of it.
        staying (list[str], optional): Names of the norms that are known to
            stay, for instance from a checkpoint. Then all others are folded
            and nothing is compared.

    Returns:
        list[str]: Names of the folded norms.
    """
    folds = find_folds(model, recording)
    if staying is None:
        undone = {
            rewrite.name
            for rewrite in apply_checked(model, folds, recording.inputs)
        }
        names = {
            layer: uses[0].name
            for layer, uses in recording.by_module().items()
        }
        for fold in folds:
            if fold.name in undone:
                print_log(
                    f'{fold.name} stays, as folding it into '
                    f'{names[fold.layer]} changes the output of the network: '
                    'a hook or other code comes between them, or uses the '
                    'weight in another way',
                    'current',
                    logging.WARNING,
                )
    else:
        undone = {*staying}
        for fold in folds:
            if fold.name not in undone:
                fold.apply()
    return [fold.name for fold in folds if fold.name not in undone]
