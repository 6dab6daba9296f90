"""Kinds of operators, as descriptions of devices name them."""

from __future__ import annotations

from torch import nn

from .product import MatrixProduct


def kind_of(layer: nn.Module) -> str:
    """Return the kind of a layer.

    Args:
        layer (nn.Module): A convolution, a linear layer or a product of
            activations, quantized or not.

    Returns:
        str: A field of :class:`mmrazor_brecq.targets.Operators`.
    """
    if isinstance(layer, MatrixProduct):
        return 'product'
    if isinstance(layer, nn.Linear):
        return 'linear'
    groups = getattr(layer, 'groups', 1)
    if groups == 1:
        return 'conv'
    alone = groups == getattr(layer, 'in_channels', 0)
    return 'depthwise_conv' if alone else 'grouped_conv'
