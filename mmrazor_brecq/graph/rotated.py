"""Rotate what a network allows, and find out what was rotated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Optional

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from ..functional import dequantize
from ..layers import products
from ..runtime.distributed import copy_from_first_process
from .compare import apply_checked
from .equalize import is_norm
from .heads import find_value_heads, products_between
from .record import record
from .residual import find_streams
from .rotate import RotateHeads, RotateStream, Rotation, tensor_of
from .samples import Inputs

#: Why a rewrite is undone.
CHANGES = (
    'rotated, it changes the output of the network: something does not treat '
    'all channels alike, or a hook or other code takes part in it'
)


@torch.no_grad()
def rotate(network: nn.Module, inputs: Inputs) -> list[Rotation]:
    """Rotate residual streams, and values of attention head by head.

    What was done, and what stays and why, is said.

    Args:
        network (nn.Module): The float network; it is changed in place.
        inputs (Tensor | Samples): Preprocessed images, on which its output
            is compared with the one before.

    Returns:
        list[Rotation]: What was done.
    """
    recording = record(network, inputs)
    streams, reasons = find_streams(recording)
    heads = find_value_heads(network, inputs, products_between(recording))
    # Streams one by one, as each is complete at the output alone.
    rounds: list[list[Rotation]] = [
        [RotateStream(network, x)] for x in streams
    ]
    rounds.append([RotateHeads(network, x) for x in heads])
    done: list[Rotation] = []
    for rewrites in rounds:
        turned = _apply_alike(network, rewrites, inputs)
        done += turned
        for rewrite in rewrites:
            if rewrite not in turned:
                reasons[rewrite.reads[0]] = CHANGES
    for rotation in done:
        _say(f'{rotation}: rotated')
    for name, reason in reasons.items():
        _say(f'What {name} reads is not rotated: {reason}')
    if not done:
        _say(
            'Nothing is rotated (`model.rotate=True`): the network has no '
            'residual stream that norms read, and no heads of attention, or '
            'none that allow it'
        )
    return done


def _say(text: str) -> None:
    print_log(text, 'current')


def _apply_alike(
    network: nn.Module, rewrites: Sequence[Rotation], inputs: Inputs
) -> list[Rotation]:
    """Apply the rewrites that are right in the first process.

    Args:
        network (nn.Module): The float network.
        rewrites (list[Rotation]): Rewrites, of which none is applied yet.
        inputs (Tensor | Samples): Preprocessed images.

    Returns:
        list[Rotation]: The rewrites that are applied, in all processes.
    """
    if not rewrites:
        return []
    wrong = apply_checked(network, rewrites, inputs)
    mine = [rewrite not in wrong for rewrite in rewrites]
    right = torch.tensor(mine)
    copy_from_first_process([right])
    if right.tolist() != mine:
        for rewrite, applied in reversed([*zip(rewrites, mine)]):
            if applied:
                rewrite.undo()
        for rewrite, applies in zip(rewrites, right.tolist()):
            if applies:
                rewrite.apply()
    return [r for r, applies in zip(rewrites, right.tolist()) if applies]


@torch.no_grad()
def rotate_as(
    network: nn.Module, inputs: Inputs, state: Mapping[str, Tensor]
) -> None:
    """Rotate what a later state of a network has rotated.

    The weights that tell it are nearer to the state either as they are, or
    rotated.

    Args:
        network (nn.Module): The float network; it is changed in place.
        inputs (Tensor | Samples): Any inputs that it takes.
        state (dict): State of it, quantized.
    """
    if not any(map(is_norm, network.modules())) and not products(network):
        return
    recording = record(network, inputs)
    streams, between = find_streams(recording)[0], products_between(recording)
    for stream in streams:
        _apply_if_nearer(RotateStream(network, stream), state)
    # Heads are looked for only where weights are not those of the state.
    far = [
        x
        for x in between
        if _distance(network, [name := f'{x.reader}.weight'], state)
        > 0.25 * float(tensor_of(network, name).square().sum())
    ]
    for heads in find_value_heads(network, inputs, far):
        _apply_if_nearer(RotateHeads(network, heads), state)


def _apply_if_nearer(rewrite: Rotation, state: Mapping[str, Tensor]) -> None:
    """Apply a rewrite if that brings a network nearer to a state."""
    network, names = rewrite.network, rewrite.telling()
    before = _distance(network, names, state)
    rewrite.apply()
    if not _distance(network, names, state) < before:
        rewrite.undo()


def _distance(
    network: nn.Module, names: Sequence[str], state: Mapping[str, Tensor]
) -> float:
    """Return how far tensors of a network are from a state."""
    distance = 0.0
    for name in names:
        mine, later = tensor_of(network, name), _real(name, state)
        if later is not None and later.shape == mine.shape:
            distance += float((later.to(mine) - mine).square().sum())
    return distance


def _real(name: str, state: Mapping[str, Tensor]) -> Optional[Tensor]:
    """Return the real values of a tensor in a state, None if it has none."""
    values = state.get(name)
    if values is None or values.is_floating_point():
        return values
    start = name.removesuffix('weight') + 'weight_quantizer.'
    scale = state.get(f'{start}scale')
    zero_point = state.get(f'{start}zero_point')
    if scale is None or zero_point is None or zero_point.shape != scale.shape:
        return None
    if scale.shape not in ((1,), values.shape[:1]):
        return None
    rows = -1, *[1] * (values.dim() - 1)
    return dequantize(
        values, scale.view(rows), zero_point.view(rows).to(scale)
    )
