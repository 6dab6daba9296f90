"""From a quantized network to the model of ONNX for a target."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Optional, Union

import onnx_ir as ir
import torch
from torch import Tensor, nn

from ..layers import activation_quantizers, quant_layers
from ..version import __version__
from .calibrate import fit_steps
from .rewrite import (
    add_steps,
    integer_biases,
    quantize_early,
    store_weights,
    tidy,
    unstepped,
)
from .targets import Target
from .trace import is_rgb, trace


@dataclass
class Options:
    """What a user chooses about a file.

    Args:
        target (Target): What it is for.
        pack (bool): Whether weights of four bits and fewer are packed.
        batch (str | int): ``'dynamic'``, or the number of images.
        preprocess (bool): Whether the file normalises the images itself.
        about (dict): More for its metadata, such as ``classes``.
    """

    target: Target
    pack: bool = False
    batch: Union[str, int] = 'dynamic'
    preprocess: bool = False
    about: dict[str, Any] = field(default_factory=dict)


def build(
    network: nn.Module,
    preprocessor: Any,
    calibration: Sequence[Tensor],
    options: Options,
) -> ir.Model:
    """Make a model of ONNX.

    Args:
        network (nn.Module): Quantized, on the CPU, in evaluation mode.
        preprocessor (nn.Module): What normalises its images.
        calibration (list[Tensor]): Batches of images as the file takes
            them; one is enough where the target wants no further steps.
        options (Options): What is wanted.

    Returns:
        ir.Model: Complete.

    Raises:
        ValueError: If torch cannot export the network, or the target
            cannot have it.
    """
    target = options.target
    target.check(network)
    layers = quant_layers(network)
    example = calibration[0]
    model = trace(
        network,
        example,
        options.batch,
        preprocessor if options.preprocess else None,
    )
    if target.step_after:
        quantize_early(model)
        values = unstepped(model, target)
        if values:
            observer = _observer(network)
            add_steps(model, fit_steps(model, values, calibration, observer))
            quantize_early(model)
    widths = {n: q.weight_quantizer.grid.bits for n, q in layers.items()}
    stored = store_weights(model, target, widths, options.pack)
    if target.integer_bias:
        integer_biases(model)
    model.graph.opset_imports[''] = max(
        target.opset, model.graph.opset_imports['']
    )
    tidy(model)
    _describe(model, network, preprocessor, example, stored, options)
    return model


def _observer(network: nn.Module) -> Any:
    """What chose the grids of the network's own activations."""
    return next(iter(activation_quantizers(network))).observer


def _describe(
    model: ir.Model,
    network: nn.Module,
    preprocessor: Any,
    example: Tensor,
    stored: dict[str, int],
    options: Options,
) -> None:
    """Say in the file what it is."""
    shape = example.shape[1:]
    size = shape[:2] if options.preprocess else shape[-2:]
    about = dict(
        method='BRECQ (Li et al., ICLR 2021)',
        target=type(options.target).__name__,
        versions=dict(mmrazor_brecq=__version__, torch=torch.__version__),
        weight_bits={
            name: layer.weight_quantizer.grid.bits
            for name, layer in quant_layers(network).items()
        },
        activation_bits={
            name.removesuffix('.input_quantizer'): module.grid.bits
            for name, module in network.named_modules()
            if module in activation_quantizers(network)
        },
        stored_bits=sorted(set(stored.values())),
        input=dict(
            layout='NHWC' if options.preprocess else 'NCHW',
            dtype='uint8' if options.preprocess else 'float32',
            size=list(size),
        ),
        normalisation=normalisation(preprocessor),
        **options.about,
    )
    for key, value in about.items():
        if value is not None:
            text = value if isinstance(value, str) else json.dumps(value)
            model.metadata_props[key] = text
    model.producer_name, model.producer_version = 'mmrazor_brecq', __version__
    model.graph.name = type(network).__name__


def normalisation(preprocessor: Any) -> Optional[dict[str, Any]]:
    """How images become a network's input: ``(x - mean) / std``.

    Args:
        preprocessor (nn.Module): Of OpenMMLab.

    Returns:
        dict: ``mean`` and ``std`` of each channel for pixels of 0 to 255,
        and the order of the ``channels``; None where there is nothing.
    """
    mean = getattr(preprocessor, 'mean', None)
    if mean is None:
        return None
    return dict(
        mean=mean.flatten().tolist(),
        std=preprocessor.std.flatten().tolist(),
        channels='RGB' if is_rgb(preprocessor) else 'BGR',
    )
