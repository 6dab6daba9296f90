"""What the tensors of a file may hold."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any, Optional

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from ..algorithms import BRECQ
from ..functional import is_extra
from ..layers import quant_layers
from ..quantizers import ActivationQuantizer
from .meta import short

#: In every quantized checkpoint, and in no float one.
MARK = 'input_shape'

#: Elements of one image, far beyond any network's: 512 x 512 x 512.
LARGEST_IMAGE = 2**27


def check_tensors(state: Any) -> None:
    """Refuse a state that is no mapping of names to plain tensors.

    Raises:
        ValueError: If it is not, or a tensor claims more elements than its
            memory has.
    """
    if not isinstance(state, Mapping):
        raise ValueError(f'it holds {short(state)}, expected a state_dict')
    for name, value in state.items():
        if isinstance(name, str) and is_extra(name):
            continue  # A module's own affair: plain, and read by it alone.
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ValueError(
                f'its state_dict has {short(value)} as {short(name)}, '
                'expected a tensor'
            )
        plain = value.layout == torch.strided and not value.is_quantized
        size = value.numel() * value.element_size()
        if not plain or size > value.untyped_storage().nbytes():
            raise ValueError(
                f'{name} is no plain tensor with all of its '
                f'{value.numel():,} elements'
            )


def check_state(module: nn.Module, state: Any) -> None:
    """See that a state of a frozen unit belongs to a module.

    Args:
        module (nn.Module): What it is to be loaded into.
        state (dict[str, Tensor]): What a file has.

    Raises:
        ValueError: If its names or shapes are others.
    """
    check_tensors(state)
    own = module.state_dict()
    other = sorted(
        name
        for name in {*own, *state}
        if not is_extra(name)
        and (
            name not in own
            or name not in state
            or own[name].shape != state[name].shape
        )
    )
    if other:
        raise ValueError(f'{short(other[0])} is another one, or missing')


def check_input_shape(shape: Any) -> None:
    """Refuse an image that is none, or too large to run."""
    sizes = shape.tolist() if isinstance(shape, Tensor) else None
    if (
        not isinstance(sizes, list)
        or shape.dtype != torch.int64
        or not all(type(n) is int and 0 < n <= LARGEST_IMAGE for n in sizes)
        or math.prod(sizes) > LARGEST_IMAGE
    ):
        raise ValueError(
            f'{MARK}={short(sizes)}, expected the shape of one image with at '
            f'most {LARGEST_IMAGE:,} elements'
        )


def check_values(model: BRECQ, unfitted: Optional[list[str]]) -> None:
    """Refuse what is no number where one has to be.

    Quantizers and layers have looked at their own as they were loaded.

    Args:
        model (BRECQ): Loaded.
        unfitted (list[str], optional): Activations that are to stay float;
            None if the file is of a time that did not say.
    """
    found = unfitted_activations(model)
    wrong = sorted(set(found) - set(found if unfitted is None else unfitted))
    if wrong:
        raise ValueError(
            f'{wrong[0]}.scale is not a number, expected one above zero: get '
            'the file anew, or quantize again'
        )
    if found and unfitted is None:
        print_log(
            f'{", ".join(found[:3])}: no scale, so {len(found)} activations '
            'stay float',
            'current',
            logging.WARNING,
        )
    scales = {f'{name}.scale' for name in found}
    for name, value in model.state_dict().items():
        known = isinstance(value, Tensor) and name not in scales
        if known and value.isnan().any():
            raise ValueError(
                f'{name} holds NaN, expected numbers: get the file anew, or '
                'quantize again'
            )
    layers = quant_layers(model)
    wrong = [name for name, layer in layers.items() if not layer.frozen]
    if wrong:
        raise ValueError(
            f'{wrong[0]}.weight is of {layers[wrong[0]].weight.dtype}, '
            'expected torch.int8: get the file anew, or quantize again'
        )


def unfitted_activations(model: BRECQ) -> list[str]:
    """Names of the activations that stay float: no image came by."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, ActivationQuantizer) and not module.active
    ]
