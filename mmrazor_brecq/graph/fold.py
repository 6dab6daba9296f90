"""Batch normalisation folded into the layer before it."""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Any, Optional

import torch
from mmengine.logging import print_log
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .compare import Rewrite, apply_checked
from .record import Recording


@torch.no_grad()
def _is_frozen_norm(module: Any, dims: int) -> bool:
    """Whether it normalises by statistics that it holds, and no more.

    Args:
        module (nn.Module): Any.
        dims (int): Dimensions of its input.
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
    gain, shift = _affine(module)
    shape = (2, len(gain), *[2] * (dims - 2))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    # Past its hooks: they are the network's, and see none but its values.
    out = module.forward(x.to(module.running_mean)).double()
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


class Fold(Rewrite):
    """A norm that goes into the layer before it, and then passes its input.

    Args:
        name (str): Of the norm.
        layer (nn.Module): The convolution or linear layer.
        norm (nn.Module): One with frozen statistics.
    """

    def __init__(self, name: str, layer: Any, norm: Any) -> None:
        super().__init__(name)
        self.layer = layer
        self.norm = norm
        self.before = (
            layer.weight.data,
            layer.bias,
            type(norm),
            norm._parameters,
            norm._buffers,
        )

    @torch.no_grad()
    def apply(self) -> None:
        """Fold: the norm stays the object that it is, of another class, so
        that wherever it is called it does nothing.
        """
        layer, norm = self.layer, self.norm
        gain, bias = _affine(norm)
        if layer.bias is not None:
            bias = bias + layer.bias.double() * gain
        weight = layer.weight.data
        column = _column(gain, weight.dim(), 0)
        # In memory of its own, which may be another weight's as well.
        layer.weight.data = weight.clone().copy_(weight.double() * column)
        layer.bias = nn.Parameter(bias.to(weight))
        norm.__class__ = nn.Identity
        norm._parameters, norm._buffers = {}, {}

    def undo(self) -> None:
        """Unfold."""
        norm = self.norm
        self.layer.weight.data, self.layer.bias, kind, *tensors = self.before
        norm.__class__ = kind
        norm._parameters, norm._buffers = tensors


def find_folds(model: nn.Module, recording: Recording) -> list[Fold]:
    """The norms whose input is what a Conv or Linear put out.

    The same tensor object, that is, with nothing written to it since and
    nothing else computed from it, on each of their calls.

    Args:
        model (nn.Module): In evaluation mode.
        recording (Recording): A recorded pass of it.
    """
    calls = recording.by_module()
    given_out = set(recording.calls[0].outputs)
    producer = {
        call.outputs[0]: call.module
        for call in recording.calls
        if recording.is_layer(call.module)
        and len(call.outputs) == 1
        and call.outputs[0].dims == _weight(call.module).dim()
    }
    folds = []
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
            and all(recording.users.get(out) == {norm} for out in outputs)
            and recording.readers(_weight(layer)) == {layer}
            and _is_frozen_norm(norm, outputs[0].dims)
        ):
            folds.append(Fold(uses[0].name, layer, norm))
    return folds


def _weight(layer: Any) -> Any:
    return layer.weight


def fold_batch_norm(
    model: nn.Module,
    recording: Recording,
    staying: Optional[Collection[str]] = None,
) -> list[str]:
    """Fold every BatchNorm that can go into the layer before it.

    The network is held against itself before, on the inputs that were
    recorded: what changes its outputs is not folded, and named in a warning.
    A folded norm becomes an ``nn.Identity`` under its own name.

    Args:
        model (nn.Module): The model, changed in place.
        recording (Recording): A recorded pass of it.
        staying (list[str], optional): Norms that are known to stay, as from
            a checkpoint: then all others are folded and nothing is compared.

    Returns:
        list[str]: Names of the norms that are folded.
    """
    folds = find_folds(model, recording)
    if staying is None:
        undone: list[Any] = apply_checked(model, folds, recording.inputs)
        names = {
            layer: uses[0].name
            for layer, uses in recording.by_module().items()
        }
        for fold in undone:
            print_log(
                f'{fold.name} stays, as folding it into {names[fold.layer]} '
                'changes what the network gives: a hook or other code stands '
                'between them, or does something with the weight',
                'current',
                logging.WARNING,
            )
    else:
        undone = [fold for fold in folds if fold.name in staying]
        for fold in folds:
            if fold not in undone:
                fold.apply()
    return [fold.name for fold in folds if fold not in undone]
