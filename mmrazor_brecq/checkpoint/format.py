"""The integer checkpoint: as small as its bits, see ``docs/checkpoint.md``.

Three entries, the same in a file of torch and of safetensors: ``format``,
``header`` and ``data``. The many small tensors of a quantized network lie
one after another in ``data``, since a container spends more on the name and
place of a tensor of its own than such a tensor holds.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..functional import pack_bits, unpack_bits

#: Raised when a reader of today could not read what is written.
FORMAT = 1


def encode(
    state: Mapping[str, Tensor], widths: Mapping[str, int], meta: dict
) -> dict[str, Tensor]:
    """Tensors and what is known of them as three tensors.

    Args:
        state (dict): A ``state_dict``.
        widths (dict[str, int]): Bits of those that hold integers of fewer
            than eight.
        meta (dict): Of plain Python, as JSON knows it.

    Returns:
        dict[str, Tensor]: ``format``, ``header`` and ``data``.
    """
    tensors: dict[str, Any] = {}
    parts = []
    for name, value in state.items():
        value = value.detach().cpu()
        bits = 8 * value.element_size()
        if value.dtype == torch.int8 and widths.get(name, 8) < 8:
            bits = widths[name]
            parts.append(pack_bits(value, bits))
        else:
            parts.append(value.contiguous().view(-1).view(torch.uint8))
        kind = str(value.dtype).removeprefix('torch.')
        tensors[name] = [kind, list(value.shape), bits]
    header = json.dumps(dict(meta=meta, tensors=tensors)).encode()
    return dict(
        format=torch.tensor(FORMAT),
        header=torch.frombuffer(
            bytearray(zlib.compress(header, 9)), dtype=torch.uint8
        ),
        data=torch.cat(parts),
    )


def is_encoded(content: Any) -> bool:
    """Whether it looks like what :func:`encode` returns."""
    return isinstance(content, Mapping) and set(content) == {
        'format',
        'header',
        'data',
    }


def decode(content: Mapping[str, Tensor]) -> dict[str, Any]:
    """Undo :func:`encode`.

    Args:
        content (dict[str, Tensor]): What it returned.

    Returns:
        dict: ``state_dict`` and ``meta``.

    Raises:
        ValueError: If it is of a later format, or ``data`` does not hold
            what ``header`` says.
    """
    number = int(content['format'])
    if number > FORMAT:
        raise ValueError(
            f'it has the format {number}, this version reads up to {FORMAT}: '
            'update mmrazor_brecq'
        )
    header = json.loads(zlib.decompress(content['header'].numpy().tobytes()))
    data, tensors, state = content['data'], header['tensors'], {}
    sizes = [
        math.ceil(math.prod(shape) * bits / 8)
        for _, shape, bits in tensors.values()
    ]
    if sum(sizes) != len(data):
        raise ValueError(
            f'its data has {len(data)} bytes, expected {sum(sizes)}'
        )
    for name, part in zip(tensors, data.split(sizes)):
        kind, shape, bits = tensors[name]
        if bits < 8:
            state[name] = unpack_bits(part, bits, shape)
        else:
            # A copy, for its numbers need not stand at whole addresses.
            state[name] = part.clone().view(getattr(torch, kind)).view(shape)
    return dict(state_dict=state, meta=header['meta'])
