"""Check what a device allows on a network that is prepared."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

from torch import nn

from ..layers import MatrixProduct, QuantLayer, kind_of
from ..quantizers import ActivationQuantizer
from ..targets import Description
from .on_target import bits_in_words
from .prepare import Door


class InputQuantizer(NamedTuple):
    """Quantizer of what layers take.

    Attributes:
        name (str): Its name in the network.
        quantizer (ActivationQuantizer): The quantizer.
        layers (tuple[str]): Names of the layers that take the activation.
    """

    name: str
    quantizer: ActivationQuantizer
    layers: tuple[str, ...]


def input_quantizers(network: nn.Module) -> Iterator[InputQuantizer]:
    """Yield all quantizers of activations, with the layers that take them.

    Args:
        network (nn.Module): After :func:`prepare`.
    """
    found: dict[str, tuple[Any, tuple[str, ...]]] = {}
    for name, module in network.named_modules():
        start = f'{name}.'.lstrip('.')
        if isinstance(module, Door):
            for i, quantizer in module.inputs.items():
                layers = module.readers[int(i)]
                found[f'{start}inputs.{i}'] = quantizer, layers
        elif isinstance(module, QuantLayer):
            found[f'{start}input_quantizer'] = module.input_quantizer, (name,)
        elif isinstance(module, MatrixProduct):
            for side in ('left', 'right'):
                key = f'{side}_quantizer'
                found[start + key] = getattr(module, key), (name,)
    for name, (quantizer, layers) in found.items():
        if isinstance(quantizer, ActivationQuantizer):
            yield InputQuantizer(name, quantizer, layers)


def check_bits(network: nn.Module, target: Description) -> None:
    """Check that the bits of a prepared network are those of a device.

    Args:
        network (nn.Module): After :func:`prepare`, or quantized.
        target (Description): The device.

    Raises:
        ValueError: If they are not. The message names the first layer.
    """
    for name, module in network.named_modules():
        if isinstance(module, QuantLayer):
            bits = module.weight_quantizer.grid.bits
            _check(target, network, name, 'weight', bits)
    for found in input_quantizers(network):
        if not found.quantizer.uniform:
            raise ValueError(
                f'{found.name} is a {type(found.quantizer).__name__}, and '
                f'{target.title} computes with integers of equal distances '
                'alone: quantize without `quantization.after_softmax`'
            )
        for layer in found.layers:
            bits = found.quantizer.grid.bits
            _check(target, network, layer, 'activation', bits)


def _check(
    target: Description, network: nn.Module, layer: str, side: str, bits: int
) -> None:
    """Refuse the bits of one layer."""
    kind = kind_of(network.get_submodule(layer))
    limits = target.limits(kind, side)
    if limits is not None and bits in limits.bits:
        return
    what = 'weight' if side == 'weight' else 'input'
    takes = f'{bits_in_words(limits.bits)} alone' if limits else 'float alone'
    raise ValueError(
        f'The {what} of {layer!r} has {bits} bits, and {target.title} takes '
        f'{takes} for {kind}: quantize with --target (`target=`), or with '
        f'other `bit_overrides` for {layer!r} and what shares its input'
    )


def narrow(network: nn.Module, target: Description) -> Collection[str]:
    """Return the names of quantizers that may not have 16 bits.

    Args:
        network (nn.Module): After :func:`prepare`.
        target (Description): The device.
    """

    def allows(layer: str) -> bool:
        kind = kind_of(network.get_submodule(layer))
        limits = target.limits(kind, 'activation')
        return limits is not None and 16 in limits.bits

    return {
        found.name
        for found in input_quantizers(network)
        if not all(map(allows, found.layers))
    }
