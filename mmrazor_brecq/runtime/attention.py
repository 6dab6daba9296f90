"""Attention without torch's fast path, which reads weights past layers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def no_fast_path() -> Iterator[None]:
    """Run attention layer by layer within this context.

    ``nn.TransformerEncoderLayer`` and ``nn.MultiheadAttention`` compute with
    one fused operator in evaluation mode, and with their layers while
    something learns: results then differ by rounding errors.
    """
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


def run_through_layers(network: nn.Module) -> None:
    """Make transformer encoders call their Linear layers, for good.

    The fast path reads the weights of these layers, and would leave their
    quantizers out.

    Args:
        network (nn.Module): It is changed in place.
    """
    for module in network.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0
        elif isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False
