"""Encode and decode quantized checkpoints, see ``docs/checkpoint.md``.

A file of torch and one of safetensors have the same four entries:
``format``, ``header``, ``data`` and ``checksum``. The many small tensors of a
quantized network are joined in ``data``, since a container needs more bytes
for the name and position of a separate tensor than such a tensor has.
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
from .files import unique_keys

#: Version of the format. It is increased when readers of the version before
#: cannot read what is written.
FORMAT = 2
#: The last format without a checksum.
UNCHECKED = 1

#: Data type and number of dimensions of each entry.
ENTRIES = dict(
    format=(torch.int64, 0),
    header=(torch.uint8, 1),
    data=(torch.uint8, 1),
    checksum=(torch.uint8, 1),
)

#: Bytes of an uncompressed header: enough for some 100,000 tensors.
MAX_HEADER_BYTES = 2**24
#: Limits of a tensor, far above those of any network.
MAX_ELEMENTS = 2**40
MAX_DIMENSIONS = 16

#: The data types that a file may contain.
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
    state: Mapping[str, Tensor],
    weight_bits: Mapping[str, int],
    meta: Mapping[str, Any],
) -> dict[str, Tensor]:
    """Encode a state and its description as four tensors.

    Args:
        state (dict[str, Tensor]): A ``state_dict``.
        weight_bits (dict[str, int]): Bit width of each int8 tensor whose
            integers have fewer than 8 bits, by its name.
        meta (dict): Values that JSON can represent.

    Returns:
        dict[str, Tensor]: ``format``, ``header``, ``data`` and
        ``checksum``.

    Raises:
        ValueError: If the format does not have the data type of a tensor,
            or ``meta`` makes the header too large.
    """
    tensors: dict[str, list] = {}
    parts = [torch.empty(0, dtype=torch.uint8)]
    for name, value in state.items():
        value = value.detach().cpu()
        kind = str(value.dtype).removeprefix('torch.')
        if kind not in DTYPES:
            raise ValueError(
                f'{name} has the data type {value.dtype}, expected one of '
                f'{", ".join(DTYPES)}'
            )
        bits = 8 * value.element_size()
        if value.dtype == torch.int8 and weight_bits.get(name, 8) < 8:
            bits = weight_bits[name]
            parts.append(pack_bits(value, bits))
        else:
            parts.append(value.contiguous().view(-1).view(torch.uint8))
        tensors[name] = [kind, list(value.shape), bits]
    header = json.dumps(dict(meta=meta, tensors=tensors)).encode()
    if len(header) > MAX_HEADER_BYTES:
        raise ValueError(
            f'The header would have {len(header):,} bytes, expected at most '
            f'{MAX_HEADER_BYTES:,}: put less into `meta`'
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
    """Return the SHA-256 of format, header and data: 32 of ``uint8``."""
    digest = hashlib.sha256(int(content['format']).to_bytes(8, 'little'))
    for name in ('header', 'data'):
        digest.update(content[name].contiguous().numpy().data)
    return torch.tensor(list(digest.digest()), dtype=torch.uint8)


def is_encoded(content: object) -> bool:
    """Return whether a file's content looks like that of :func:`encode`."""
    return isinstance(content, Mapping) and {
        'format',
        'header',
        'data',
    } <= set(content)


def is_checked(content: Mapping[str, Tensor]) -> bool:
    """Return whether the content has a format with a checksum."""
    return int(content['format']) > UNCHECKED


def decode(content: Mapping[str, Tensor]) -> dict[str, Any]:
    """Decode what :func:`encode` returned, in this or an earlier format.

    The sizes in the header are compared with the size of ``data`` before
    any memory is allocated for them.

    Args:
        content (dict[str, Tensor]): The four entries of a file.

    Returns:
        dict: ``state_dict`` and ``meta``.

    Raises:
        ValueError: If the format is unknown, the checksum does not match,
            or ``data`` does not match ``header``.
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
            # A copy, since its elements may start at an odd address.
            state[name] = part.clone().view(DTYPES[kind]).view(shape)
    return dict(state_dict=state, meta=header['meta'])


def _check_entries(content: Mapping[str, Tensor]) -> None:
    """Check the data types of the entries, the format and the checksum."""
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
        raise ValueError('its content does not match its checksum')


def _unpack_header(packed: Tensor) -> dict[str, Any]:
    unpack = zlib.decompressobj()
    text = unpack.decompress(packed.numpy().tobytes(), MAX_HEADER_BYTES)
    if not unpack.eof or unpack.unused_data:
        raise ValueError(
            'its header is cut, or has more than '
            f'{MAX_HEADER_BYTES:,} bytes uncompressed'
        )
    header = json.loads(
        text, object_pairs_hook=unique_keys, parse_constant=_refuse_constant
    )
    if not isinstance(header, dict) or not all(
        isinstance(header.get(key), dict) for key in ('meta', 'tensors')
    ):
        raise ValueError('its header lacks `meta` or `tensors`')
    return header


def _refuse_constant(text: str) -> None:
    """Refuse NaN and infinity, which Python reads but JSON does not know."""
    raise ValueError(f'its header contains {text}, expected finite numbers')


def _size(name: str, entry: object) -> int:
    """Return the bytes of a tensor, from its checked entry in the header."""
    if not isinstance(entry, list) or len(entry) != 3:
        raise ValueError(
            f'its header has {entry!r:.80} for {name!r:.80}, expected the '
            'data type, the shape and the bits'
        )
    kind, shape, bits = entry
    if not isinstance(kind, str) or kind not in DTYPES:
        raise ValueError(f'{name!r:.80} has the unknown type {kind!r:.80}')
    if (
        not isinstance(shape, list)
        or len(shape) > MAX_DIMENSIONS
        or not all(type(n) is int and 0 <= n < MAX_ELEMENTS for n in shape)
        or math.prod(shape) >= MAX_ELEMENTS
    ):
        raise ValueError(
            f'{name!r:.80} has {shape!r:.80} as its shape, expected at most '
            f'{MAX_DIMENSIONS} sizes'
        )
    whole = 8 * DTYPES[kind].itemsize
    packed = kind == 'int8' and type(bits) is int and 2 <= bits < 8
    if not packed and (type(bits) is not int or bits != whole):
        raise ValueError(
            f'{name!r:.80} of {kind} has {bits!r:.80} bits, expected {whole}'
            + (', or 2 to 7' if kind == 'int8' else '')
        )
    return math.ceil(math.prod(shape) * bits / 8)
