"""Plain values as tensors, so that a file of tensors can hold them.

A module may put anything into its state (``get_extra_state``). What is
plain, that is None, numbers, text, bytes, tensors, and lists, tuples, sets
and dicts of these, goes into one tensor of bytes, as JSON: nothing of it
runs when it is read.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

#: How keys of a state end whose values are a module's own affair.
EXTRA = nn.modules.module._EXTRA_STATE_KEY_SUFFIX
#: What such a tensor begins with.
MARK = b'plain value 1\n'

#: Containers by their name in the JSON.
CONTAINERS: dict[str, Any] = dict(
    tuple=tuple, set=set, frozenset=frozenset, size=torch.Size
)


def is_extra(key: str) -> bool:
    """Whether a state's key is that of a ``get_extra_state``."""
    return key.rpartition('.')[2] == EXTRA


def pack_extra(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """A state whose values are tensors alone.

    Args:
        state (dict): A ``state_dict``.

    Returns:
        dict[str, Tensor]: The same, with extra states as ``uint8``.

    Raises:
        ValueError: If an extra state is not plain. It names the key.
    """
    return {
        key: _pack(key, value) if is_extra(key) else value
        for key, value in state.items()
    }


def unpack_extra(state: Mapping[str, Any]) -> dict[str, Any]:
    """Undo :func:`pack_extra`; what it did not pack stays as it is."""
    return {
        key: _unpack(key, value) if is_extra(key) else value
        for key, value in state.items()
    }


def _pack(key: str, value: Any) -> Tensor:
    try:
        text = json.dumps(_plain(value)).encode()
    except (TypeError, RecursionError) as error:
        raise ValueError(
            f'The state {key!r} (get_extra_state) holds {error}, which no '
            'file can hold without code in it: let it return None, numbers, '
            'text, bytes, tensors, and lists, tuples, sets and dicts of '
            'these'
        ) from error
    return torch.frombuffer(bytearray(MARK + text), dtype=torch.uint8)


def _unpack(key: str, value: Any) -> Any:
    if not isinstance(value, Tensor) or value.dtype != torch.uint8:
        return value
    content = value.cpu().contiguous().numpy().tobytes()
    if not content.startswith(MARK):
        return value
    try:
        return _value(json.loads(content[len(MARK) :]))
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        raise ValueError(f'The state {key!r} is damaged: {error}') from error


def _plain(value: Any) -> Any:
    """As JSON has it; what JSON does not know is a dict of one key."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if type(value) is list:
        return [_plain(x) for x in value]
    if isinstance(value, Mapping):
        pairs = [[_plain(k), _plain(v)] for k, v in value.items()]
        return dict(dict=pairs)
    if isinstance(value, (bytes, bytearray)):
        return dict(bytes=base64.b64encode(value).decode())
    if isinstance(value, Tensor):
        return dict(tensor=_plain_tensor(value))
    if isinstance(value, torch.dtype):
        return dict(dtype=_name(value))
    for name, kind in CONTAINERS.items():
        if type(value) is kind:
            return {name: [_plain(x) for x in value]}
    raise TypeError(f'a {type(value).__module__}.{type(value).__qualname__}')


def _plain_tensor(value: Tensor) -> list:
    if value.layout != torch.strided or value.is_quantized:
        raise TypeError(f'a tensor of layout {value.layout}')
    flat = value.detach().cpu().contiguous().view(-1)
    content = flat.view(torch.uint8).numpy().tobytes()
    text = base64.b64encode(content).decode()
    return [_name(value.dtype), list(value.shape), text]


def _value(plain: Any) -> Any:
    """Undo :func:`_plain`."""
    if isinstance(plain, list):
        return [_value(x) for x in plain]
    if not isinstance(plain, dict):
        return plain
    ((kind, content),) = plain.items()
    if kind == 'dict':
        return {_value(k): _value(v) for k, v in content}
    if kind == 'bytes':
        return base64.b64decode(content, validate=True)
    if kind == 'tensor':
        name, shape, text = content
        data = bytearray(base64.b64decode(text, validate=True))
        flat = torch.tensor(list(data), dtype=torch.uint8)
        return flat.view(_dtype(name)).view(shape)
    if kind == 'dtype':
        return _dtype(content)
    return CONTAINERS[kind](_value(x) for x in content)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix('torch.')


def _dtype(name: str) -> torch.dtype:
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise ValueError(f'{name!r} is no type of tensors')
    return found
