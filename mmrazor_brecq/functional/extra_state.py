"""Plain Python values as tensors, so that a file of tensors can store them.

A module may put any value into its state (``get_extra_state``). Plain values
are None, numbers, text, bytes, tensors, and lists, tuples, sets and dicts of
these. They are stored as JSON in one tensor of bytes, and no code runs when
they are read.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any, Callable, Union

import torch
from torch import Tensor, nn

#: Last part of the keys of a state under which extra states are stored.
EXTRA = nn.modules.module._EXTRA_STATE_KEY_SUFFIX
#: First bytes of a tensor that stores a plain value.
MARK = b'plain value 1\n'

#: What ``json`` reads and writes.
Json = Union[None, bool, int, float, str, list, dict]
#: Containers by their name in the JSON.
CONTAINERS: dict[str, Callable] = dict(
    tuple=tuple, set=set, frozenset=frozenset, size=torch.Size
)


def is_extra(key: str) -> bool:
    """Return whether a state's key is that of a ``get_extra_state``."""
    return key.rpartition('.')[2] == EXTRA


def pack_extra(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return a state whose values are all tensors.

    Args:
        state (dict): A ``state_dict``.

    Returns:
        dict[str, Tensor]: The same, with extra states as ``uint8``.

    Raises:
        ValueError: If an extra state is not plain. The message names its
            key.
    """
    return {
        key: _pack(key, value) if is_extra(key) else value
        for key, value in state.items()
    }


def unpack_extra(state: Mapping[str, Any]) -> dict[str, Any]:
    """Undo :func:`pack_extra`; return what it did not pack unchanged.

    Args:
        state (dict): A ``state_dict``.

    Raises:
        ValueError: If a packed extra state is damaged. The message names
            its key.
    """
    return {
        key: _unpack(key, value) if is_extra(key) else value
        for key, value in state.items()
    }


def _pack(key: str, value: object) -> Tensor:
    try:
        text = json.dumps(_to_json(value)).encode()
    except (TypeError, RecursionError) as error:
        raise ValueError(
            f'The state {key!r} (get_extra_state) contains {error}, which a '
            'file can only store with code in it: let it return None, '
            'numbers, text, bytes, tensors, and lists, tuples, sets and '
            'dicts of these'
        ) from error
    return torch.frombuffer(bytearray(MARK + text), dtype=torch.uint8)


def _unpack(key: str, value: object) -> object:
    if not isinstance(value, Tensor) or value.dtype != torch.uint8:
        return value
    content = value.cpu().contiguous().numpy().tobytes()
    if not content.startswith(MARK):
        return value
    try:
        return _from_json(json.loads(content[len(MARK) :]))
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        raise ValueError(f'The state {key!r} is damaged: {error}') from error


def _to_json(value: Any) -> Json:
    """Return a plain value as JSON.

    Types that JSON lacks become a dict with one key, the type's name.

    Raises:
        TypeError: If the value is not plain. The message names its type.
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if type(value) is list:
        return [_to_json(x) for x in value]
    if isinstance(value, Mapping):
        pairs = [[_to_json(k), _to_json(v)] for k, v in value.items()]
        return dict(dict=pairs)
    if isinstance(value, (bytes, bytearray)):
        return dict(bytes=base64.b64encode(value).decode())
    if isinstance(value, Tensor):
        return dict(tensor=_tensor_to_json(value))
    if isinstance(value, torch.dtype):
        return dict(dtype=_name(value))
    for name, kind in CONTAINERS.items():
        if type(value) is kind:
            return {name: [_to_json(x) for x in value]}
    raise TypeError(f'a {type(value).__module__}.{type(value).__qualname__}')


def _tensor_to_json(value: Tensor) -> list[Json]:
    """Return type, shape and content of a tensor."""
    if value.layout != torch.strided or value.is_quantized:
        raise TypeError(f'a tensor of layout {value.layout}')
    flat = value.detach().cpu().contiguous().view(-1)
    content = flat.view(torch.uint8).numpy().tobytes()
    text = base64.b64encode(content).decode()
    return [_name(value.dtype), list(value.shape), text]


def _from_json(value: Json) -> object:
    """Undo :func:`_to_json`."""
    if isinstance(value, list):
        return [_from_json(x) for x in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == 'dict':
        return {_from_json(k): _from_json(v) for k, v in content}
    if kind == 'bytes':
        return base64.b64decode(content, validate=True)
    if kind == 'tensor':
        name, shape, text = content
        data = bytearray(base64.b64decode(text, validate=True))
        flat = torch.tensor(list(data), dtype=torch.uint8)
        return flat.view(_dtype(name)).view(shape)
    if kind == 'dtype':
        return _dtype(content)
    return CONTAINERS[kind](_from_json(x) for x in content)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix('torch.')


def _dtype(name: str) -> torch.dtype:
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise ValueError(f'{name!r} is not a dtype of torch')
    return found
