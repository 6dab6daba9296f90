"""The integer checkpoint: as small as its bits, see ``docs/checkpoint.md``.

Four entries, the same in a file of torch and of safetensors: ``format``,
``header``, ``data`` and ``checksum``. The many small tensors of a quantized
network lie one after another in ``data``, since a container spends more on
the name and place of a tensor of its own than such a tensor holds.
"""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..functional import pack_bits, unpack_bits
from .files import once

#: Raised when a reader of today could not read what is written.
FORMAT = 2
#: The last one without a checksum.
UNCHECKED = 1

#: Entries of a file, and what each of them is.
ENTRIES = dict(
    format=(torch.int64, 0),
    header=(torch.uint8, 1),
    data=(torch.uint8, 1),
    checksum=(torch.uint8, 1),
)

#: Bytes of a header: some 100,000 tensors.
LARGEST_HEADER = 2**24
#: Elements of a tensor and its dimensions, far beyond any network's.
MOST_ELEMENTS = 2**40
MOST_DIMENSIONS = 16

#: The types that a file may hold.
DTYPES = {
    str(dtype).removeprefix('torch.'): dtype
    for dtype in (
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
        torch.bool,
        torch.complex64,
        torch.complex128,
    )
}


def encode(
    state: Mapping[str, Tensor], widths: Mapping[str, int], meta: dict
) -> dict[str, Tensor]:
    """Tensors and what is known of them as four tensors.

    Args:
        state (dict): A ``state_dict``.
        widths (dict[str, int]): Bits of those that hold integers of fewer
            than eight.
        meta (dict): Of plain Python, as JSON knows it.

    Returns:
        dict[str, Tensor]: ``format``, ``header``, ``data`` and
        ``checksum``.

    Raises:
        ValueError: If a tensor is of a type that the format does not know,
            or ``meta`` is larger than a header may be.
    """
    tensors: dict[str, Any] = {}
    parts = [torch.empty(0, dtype=torch.uint8)]
    for name, value in state.items():
        value = value.detach().cpu()
        kind = str(value.dtype).removeprefix('torch.')
        if kind not in DTYPES:
            raise ValueError(
                f'{name} is of {value.dtype}, expected one of '
                f'{", ".join(DTYPES)}'
            )
        bits = 8 * value.element_size()
        if value.dtype == torch.int8 and widths.get(name, 8) < 8:
            bits = widths[name]
            parts.append(pack_bits(value, bits))
        else:
            parts.append(value.contiguous().view(-1).view(torch.uint8))
        tensors[name] = [kind, list(value.shape), bits]
    header = json.dumps(dict(meta=meta, tensors=tensors)).encode()
    if len(header) > LARGEST_HEADER:
        raise ValueError(
            f'The header would have {len(header):,} bytes, expected at most '
            f'{LARGEST_HEADER:,}: put less into `meta`'
        )
    content = dict(
        format=torch.tensor(FORMAT),
        header=torch.frombuffer(
            bytearray(zlib.compress(header, 9)), dtype=torch.uint8
        ),
        data=torch.cat(parts),
    )
    return dict(content, checksum=checksum(content))


def checksum(content: Mapping[str, Tensor]) -> Tensor:
    """SHA-256 of format, header and data, 32 of ``uint8``."""
    digest = hashlib.sha256(int(content['format']).to_bytes(8, 'little'))
    for name in ('header', 'data'):
        digest.update(content[name].contiguous().numpy().data)
    return torch.tensor(list(digest.digest()), dtype=torch.uint8)


def is_encoded(content: Any) -> bool:
    """Whether it looks like what :func:`encode` returns."""
    return isinstance(content, Mapping) and {
        'format',
        'header',
        'data',
    } <= set(content)


def is_checked(content: Mapping[str, Tensor]) -> bool:
    """Whether it is of a format that has a checksum."""
    return int(content['format']) > UNCHECKED


def decode(content: Mapping[str, Tensor]) -> dict[str, Any]:
    """Undo :func:`encode`.

    Nothing is allocated for what the header claims before it was compared
    to what there is.

    Args:
        content (dict[str, Tensor]): What it returned, or what it returned
            in an earlier format.

    Returns:
        dict: ``state_dict`` and ``meta``.

    Raises:
        ValueError: If it is of an unknown format, its checksum is another
            one, or ``data`` does not hold what ``header`` says.
    """
    _check_entries(content)
    header = _unpack_header(content['header'])
    data, tensors, state = content['data'], header['tensors'], {}
    sizes = [_size(name, entry) for name, entry in tensors.items()]
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
            state[name] = part.clone().view(DTYPES[kind]).view(shape)
    return dict(state_dict=state, meta=header['meta'])


def _check_entries(content: Mapping[str, Tensor]) -> None:
    """See that the entries are what they are called, and unharmed."""
    for name, value in content.items():
        expected = ENTRIES.get(name)
        if expected is None:
            raise ValueError(f'its entry {name!r:.80} is unknown')
        found = isinstance(value, Tensor) and (value.dtype, value.dim())
        if found != expected:
            raise ValueError(
                f'its entry {name!r} is no {expected[1]}-dimensional '
                f'tensor of {expected[0]}'
            )
    number = int(content['format'])
    if not UNCHECKED <= number <= FORMAT:
        raise ValueError(
            f'it has the format {number}, this version reads {UNCHECKED} to '
            f'{FORMAT}: update mmrazor_brecq, or get the file anew'
        )
    if is_checked(content) != ('checksum' in content):
        raise ValueError(
            f'it has the format {number}, which has '
            f'{"a" if is_checked(content) else "no"} checksum'
        )
    if is_checked(content) and not torch.equal(
        content['checksum'], checksum(content)
    ):
        raise ValueError('its content is not what its checksum says')


def _unpack_header(packed: Tensor) -> dict[str, Any]:
    unpack = zlib.decompressobj()
    text = unpack.decompress(packed.numpy().tobytes(), LARGEST_HEADER)
    if not unpack.eof or unpack.unused_data:
        raise ValueError(
            'its header is cut, or has more than '
            f'{LARGEST_HEADER:,} bytes uncompressed'
        )
    header = json.loads(
        text, object_pairs_hook=once, parse_constant=_no_number
    )
    if not isinstance(header, dict) or not all(
        isinstance(header.get(key), dict) for key in ('meta', 'tensors')
    ):
        raise ValueError('its header lacks `meta` or `tensors`')
    return header


def _no_number(text: str) -> None:
    raise ValueError(f'its header holds {text}')


def _size(name: str, entry: Any) -> int:
    """Bytes of a tensor as the header has it, if it has it in order."""
    if not isinstance(entry, list) or len(entry) != 3:
        raise ValueError(
            f'its header has {entry!r:.80} for {name!r:.80}, expected type, '
            'shape and bits'
        )
    kind, shape, bits = entry
    if not isinstance(kind, str) or kind not in DTYPES:
        raise ValueError(f'{name!r:.80} is of the unknown type {kind!r:.80}')
    if (
        not isinstance(shape, list)
        or len(shape) > MOST_DIMENSIONS
        or not all(type(n) is int and 0 <= n < MOST_ELEMENTS for n in shape)
        or math.prod(shape) >= MOST_ELEMENTS
    ):
        raise ValueError(f'{name!r:.80} has no shape, but {shape!r:.80}')
    whole = 8 * DTYPES[kind].itemsize
    few = kind == 'int8' and type(bits) is int and 2 <= bits < 8
    if not few and (type(bits) is not int or bits != whole):
        raise ValueError(
            f'{name!r:.80} of {kind} has {bits!r:.80} bits, expected {whole}'
            + (', or 2 to 7' if kind == 'int8' else '')
        )
    return math.ceil(math.prod(shape) * bits / 8)
