"""Quantization in two lines, for notebooks and scripts."""

from __future__ import annotations

import copy
import time
from typing import Any, Optional, Union

import torch
from torch import Tensor, nn

from .algorithms import BRECQ
from .report import weight_bytes


def quantize(
    model: nn.Module,
    images: Tensor,
    weight_bits: int = 4,
    activation_bits: Optional[int] = 4,
    bit_overrides: Optional[dict[str, Union[int, dict]]] = None,
    reconstructor: Optional[dict] = None,
    partition: Optional[dict] = None,
    batch_size: int = 64,
    seed: int = 0,
) -> tuple[BRECQ, dict[str, Any]]:
    """Quantize a trained network.

        model, report = mmrazor_brecq.quantize(resnet, images)
        logits = model(images)

    Args:
        model (nn.Module): A trained network; it is left as it is.
        images (Tensor): N x C x H x W calibration images, preprocessed as
            the network wants them, without labels. 1,024 are plenty.
        weight_bits (int): Width of weights, 2 to 8.
        activation_bits (int, optional): Width of activations, 2 to 8; None
            leaves them in float.
        bit_overrides (dict, optional): Widths by layer name or pattern.
        reconstructor (dict, optional): Config of the reconstructor, such as
            ``dict(type='BlockReconstructor', iterations=1000)``.
        partition (dict, optional): Config of the partition into units.
        batch_size (int): Images a forward pass.
        seed (int): The same seed gives the same weights.

    Returns:
        tuple[BRECQ, dict]: The quantized network, called like ``model``,
        and its report with ``units``, ``weight_bytes`` and ``seconds``.

    Raises:
        ValueError: If there are too few images, or one is not finite.
    """
    start = time.perf_counter()
    activation = (
        None if activation_bits is None else dict(bits=activation_bits)
    )
    brecq = BRECQ(
        copy.deepcopy(model),
        quantization=dict(
            weight=dict(bits=weight_bits),
            activation=activation,
            bit_overrides=bit_overrides or {},
        ),
        partition=partition,
        reconstructor=reconstructor,
    )
    if not isinstance(images, Tensor) or not images.is_floating_point():
        kind = getattr(images, 'dtype', type(images).__name__)
        raise ValueError(
            f'images are {kind}, expected a floating-point tensor of '
            'preprocessed images, N x C x H x W'
        )
    least = brecq.reconstructor.batch_size + 1
    if len(images) < least:
        raise ValueError(
            f'{len(images)} images, expected {least} or more: '
            'give more, or a reconstructor with a smaller '
            '`batch_size`'
        )
    if not images.isfinite().all():
        raise ValueError('The images hold NaN or infinity')
    brecq.eval()
    parameter = next(brecq.parameters(), torch.empty(0))
    # Two batches at least: what is the same in both is of no image.
    batch_size = min(batch_size, len(images) // 2 + 1)
    batches = images.to(parameter.device, parameter.dtype).split(batch_size)
    teacher = brecq.prepare(batches[0][:1])
    units = [
        report.to_dict()
        for report in brecq.reconstruct(teacher, batches, seed)
    ]
    return brecq, dict(
        units=units,
        weight_bytes=weight_bytes(brecq),
        seconds=time.perf_counter() - start,
    )
