"""Build the model of ONNX that a quantized network becomes for a target."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Optional, Union

import onnx_ir as ir
import torch
from torch import Tensor, nn

from ..layers import activation_quantizers, kind_of, quant_layers
from ..version import __version__
from .integer_bias import integer_biases
from .rewrite import quantize_early, share_scales, store_weights, tidy
from .target_scales import add_quantizers, choose_scales, missing_quantizers
from .targets import Target
from .trace import is_rgb, trace


@dataclass
class Options:
    """Choices of a user about a file.

    Args:
        target (Target): Runtime that it is for.
        pack (bool): Whether weights of 4 bits and fewer are packed.
        batch (str | int): ``'dynamic'``, or the number of images.
        preprocess (bool): Whether the file normalizes the images itself.
        about (dict): More for its metadata, such as ``classes``.
    """

    target: Target
    pack: bool = False
    batch: Union[str, int] = 'dynamic'
    preprocess: bool = False
    about: Mapping[str, object] = field(default_factory=dict)


def build(
    network: nn.Module,
    preprocessor: Optional[nn.Module],
    calibration: Sequence[Tensor],
    options: Options,
) -> ir.Model:
    """Build a model of ONNX.

    Args:
        network (nn.Module): Quantized, on the CPU, in evaluation mode.
        preprocessor (nn.Module, optional): Normalizes its images.
        calibration (list[Tensor]): Batches of images in the form that the
            file takes; one is enough where the target wants no further
            scales.
        options (Options): What the user chose.

    Returns:
        ir.Model: Complete.

    Raises:
        ValueError: If torch cannot export the network, or the target
            does not allow it.
    """
    target = options.target
    target.check(network)
    if options.pack:
        target.check_packed(network)
    example = calibration[0]
    model = trace(
        network,
        example,
        options.batch,
        preprocessor if options.preprocess else None,
    )
    quantize_early(model, target.fuses)
    if target.quantized_outputs:
        values = missing_quantizers(model, target)
        if values:
            observer = activation_quantizers(network)[0].observer
            scales = choose_scales(model, values, calibration, observer)
            add_quantizers(model, scales)
            quantize_early(model, target.fuses)
    stored = store_weights(model, target, _weight_bits(network), options.pack)
    per_tensor = _per_tensor(network, target)
    if target.integer_bias:
        integer_biases(model, per_tensor)
    share_scales(model, per_tensor)
    model.graph.opset_imports[''] = max(
        target.opset, model.graph.opset_imports['']
    )
    tidy(model)
    about = _description(network, preprocessor, example, stored, options)
    for key, value in about.items():
        if value is not None:
            text = value if isinstance(value, str) else json.dumps(value)
            model.metadata_props[key] = text
    model.producer_name, model.producer_version = 'mmrazor_brecq', __version__
    model.graph.name = type(network).__name__
    return model


def _weight_bits(network: nn.Module) -> dict[str, int]:
    """Return the bits of every layer's weight."""
    return {
        name: layer.weight_quantizer.grid.bits
        for name, layer in quant_layers(network).items()
    }


def _per_tensor(network: nn.Module, target: Target) -> list[str]:
    """Return the layers whose weights may have one scale alone."""
    limits: dict[str, Any] = {
        name: target.limits(kind_of(layer), 'weight')
        for name, layer in quant_layers(network).items()
    }
    return [name for name, x in limits.items() if x.per_channel is False]


def _description(
    network: nn.Module,
    preprocessor: Optional[nn.Module],
    example: Tensor,
    stored: Mapping[str, int],
    options: Options,
) -> dict[str, object]:
    """Return the metadata of a file; values that are None are left out."""
    shape = example.shape[1:]
    size = shape[:2] if options.preprocess else shape[-2:]
    return dict(
        method='BRECQ (Li et al., ICLR 2021)',
        target=options.target.name or type(options.target).__name__,
        versions=dict(mmrazor_brecq=__version__, torch=torch.__version__),
        weight_bits=_weight_bits(network),
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
        normalisation=normalization(preprocessor),
        **options.about,
    )


def normalization(
    preprocessor: Optional[nn.Module],
) -> Optional[dict[str, object]]:
    """Return how images become a network's input: ``(x - mean) / std``.

    Args:
        preprocessor (nn.Module, optional): Of OpenMMLab.

    Returns:
        dict: ``mean`` and ``std`` of each channel for pixels of 0 to 255,
        and the order of the ``channels``; None if images are not
        normalized.
    """
    mean = getattr(preprocessor, 'mean', None)
    std = getattr(preprocessor, 'std', None)
    if preprocessor is None or mean is None or std is None:
        return None
    return dict(
        mean=mean.flatten().tolist(),
        std=std.flatten().tolist(),
        channels='RGB' if is_rgb(preprocessor) else 'BGR',
    )
