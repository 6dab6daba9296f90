"""Check the tensors of a checkpoint."""

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
from .meta import abbreviate

#: A name in every quantized checkpoint, and in no float one.
QUANTIZED_KEY = 'input_shape'

#: Elements of one image, far more than any network takes: 512 x 512 x 512.
MAX_IMAGE_ELEMENTS = 2**27


def check_tensors(state: object) -> None:
    """Check that a state maps names to plain tensors.

    Raises:
        ValueError: If it does not, or if a tensor claims more elements than
            its memory has.
    """
    if not isinstance(state, Mapping):
        raise ValueError(
            f'it contains {abbreviate(state)}, expected a state_dict'
        )
    for name, value in state.items():
        if isinstance(name, str) and is_extra(name):
            continue  # The module that reads it checks it.
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ValueError(
                f'its state_dict has {abbreviate(value)} as '
                f'{abbreviate(name)}, expected a tensor'
            )
        plain = value.layout == torch.strided and not value.is_quantized
        size = value.numel() * value.element_size()
        if not plain or size > value.untyped_storage().nbytes():
            raise ValueError(
                f'{name} is no plain tensor with all of its '
                f'{value.numel():,} elements'
            )


def check_state(module: nn.Module, state: Any) -> None:
    """Check that the state of a frozen unit fits a module.

    Args:
        module (nn.Module): The unit that the state is loaded into.
        state (dict[str, Tensor]): The content of a file, of any type.

    Raises:
        ValueError: If the names or the shapes do not match.
    """
    check_tensors(state)
    expected = module.state_dict()
    other = sorted(
        name
        for name in {*expected, *state}
        if not is_extra(name)
        and (
            name not in expected
            or name not in state
            or expected[name].shape != state[name].shape
        )
    )
    if other:
        raise ValueError(
            f'{abbreviate(other[0])} is missing, unknown, or of another shape'
        )


def check_input_shape(shape: Tensor) -> None:
    """Refuse a shape that is not the shape of an image of usual size."""
    sizes = shape.tolist()
    if (
        shape.dim() != 1
        or shape.dtype != torch.int64
        or not all(0 < size <= MAX_IMAGE_ELEMENTS for size in sizes)
        or math.prod(sizes) > MAX_IMAGE_ELEMENTS
    ):
        raise ValueError(
            f'{QUANTIZED_KEY}={abbreviate(sizes)}, expected the shape of one '
            f'image with at most {MAX_IMAGE_ELEMENTS:,} elements'
        )


def check_values(model: BRECQ, unfitted: Optional[list[str]]) -> None:
    """Check the values of a model that was loaded from a checkpoint.

    Quantizers and layers have checked their own values while they were
    loaded.

    Args:
        model (BRECQ): The loaded model.
        unfitted (list[str], optional): Names of the activation quantizers
            that have no scale; None if an early version wrote the file.

    Raises:
        ValueError: If a scale is missing, a value is NaN, or a layer has
            float weights.
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
                f'{name} contains NaN, expected numbers: get the file anew, '
                'or quantize again'
            )
    layers = quant_layers(model)
    wrong = [name for name, layer in layers.items() if not layer.frozen]
    if wrong:
        raise ValueError(
            f'{wrong[0]}.weight has {layers[wrong[0]].weight.dtype}, '
            'expected torch.int8: get the file anew, or quantize again'
        )


def unfitted_activations(model: BRECQ) -> list[str]:
    """Return the names of activation quantizers that saw no image."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, ActivationQuantizer) and not module.active
    ]
