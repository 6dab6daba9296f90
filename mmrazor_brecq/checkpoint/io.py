"""Checkpoints: written whole, read safely, with words about what does not
fit.
"""

from __future__ import annotations

import hashlib
import os.path as osp
import pickle
from collections.abc import Mapping
from typing import Any, Union

import torch
from mmengine.logging import print_log
from torch import nn

from .._requirements import require
from ..algorithms import BRECQ
from ..functional import is_extra, pack_extra
from ..layers import quant_layers
from ..version import __version__
from .files import save_tensors, written_whole
from .format import decode, encode, is_encoded
from .weights import find_states, fit_state

#: In every quantized checkpoint, and in no float one.
MARK = 'input_shape'

#: Files of this ending are of safetensors, all others of torch.
SAFETENSORS = '.safetensors'


def read_checkpoint(path: str, trust: bool = False) -> dict[str, Any]:
    """Load a checkpoint file.

    Args:
        path (str): The file.
        trust (bool): Whether to run code that the file may hold.

    Returns:
        dict: Its content, with the key ``state_dict``; ``states`` has all
        that may be meant by that, by their keys.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no whole checkpoint, or one that only loads by
            running code in it, without ``trust``.
    """
    if not osp.isfile(path):
        raise FileNotFoundError(f'No checkpoint at {path!r}')
    try:
        content = _read_file(path, trust)
        if is_encoded(content):
            return decode(content)
    except pickle.UnpicklingError as error:
        if 'eights only' not in str(error):
            raise ValueError(_broken(path, error)) from error
        raise ValueError(
            f'{path!r} holds more than tensors and plain Python, and loading '
            'it can run any code that its maker put in. If you trust its '
            'source, add --trust-checkpoint'
        ) from error
    except ImportError:
        raise
    except RuntimeError as error:
        if 'TorchScript' not in str(error):
            raise ValueError(_broken(path, error)) from error
        raise ValueError(
            f'{path!r} is a TorchScript archive: save its weights, '
            'torch.save(torch.jit.load(path).state_dict(), ...), and give '
            'these'
        ) from error
    except Exception as error:  # pickle raises whatever bytes make of it
        raise ValueError(_broken(path, error)) from error
    states = find_states(content)
    if not states:
        raise ValueError(
            f'{path!r} holds no state_dict: expected a mapping of '
            'names to tensors, itself or under `state_dict`'
        )
    rest = content if isinstance(content, Mapping) and '' not in states else {}
    first = next(iter(states.values()))
    return dict(rest, state_dict=first, states=states)


def _read_file(path: str, trust: bool) -> Any:
    if path.endswith(SAFETENSORS):
        return require('safetensors.torch').load_file(path)
    with open(path, 'rb') as file:
        if not file.read(2).startswith((b'PK', b'\x80')):
            raise ValueError('neither an archive nor a pickle')
    return torch.load(path, 'cpu', weights_only=not trust)


def check_container(path: str) -> None:
    """See that a checkpoint of this name can be written, before any work.

    Raises:
        ImportError: If it asks for safetensors, which are not installed.
    """
    if path.endswith(SAFETENSORS):
        require('safetensors.torch')


def check_quantized(model: Any) -> None:
    """See that a model is what a quantization ends with.

    Args:
        model (BRECQ): What is to be saved or exported.

    Raises:
        ValueError: If it is a float network, one whose quantizers were
            placed but never fitted, or only some of them.
    """
    cure = (
        'give what mmrazor_brecq.quantize or mmrazor_brecq.load returned, '
        'or reconstruct it to the end'
    )
    if not isinstance(model, BRECQ):
        raise ValueError(
            f'The model is a {type(model).__name__}, expected a quantized '
            f'BRECQ: {cure}'
        )
    if not model.prepared:
        raise ValueError(
            f'The BRECQ of a {type(model.architecture).__name__} holds the '
            f'float network still: {cure}'
        )
    layers = quant_layers(model.architecture)
    left = [name for name, layer in layers.items() if not layer.frozen]
    if left:
        raise ValueError(
            f'{len(left)} of {len(layers)} layers, {left[0]!r} first, have '
            f'real weights: not reconstructed yet; {cure}'
        )


def save_quantized(model: BRECQ, meta: dict[str, Any], path: str) -> None:
    """Write a quantized network as integers of its bits.

    Args:
        model (BRECQ): Reconstructed.
        meta (dict): More that is to be known of it, plain Python; what
            made it, its bits, and what :func:`load_quantized` needs are
            added.
        path (str): A file; one that ends in ``.safetensors`` becomes one.

    Raises:
        ValueError: If it is not quantized, or not to its end.
    """
    check_quantized(model)
    layers = quant_layers(model)
    widths = {
        f'{name}.weight': layer.weight_quantizer.grid.bits
        for name, layer in layers.items()
        if layer.frozen
    }
    meta = dict(
        meta,
        mmrazor_brecq=__version__,
        bits={name: list(bits) for name, bits in model.bits.items()},
        quantization=model.scheme.to_dict(),
        partition=model.partition_cfg,
    )
    content = encode(pack_extra(model.state_dict()), widths, meta)
    if path.endswith(SAFETENSORS):
        with written_whole(path) as name:
            require('safetensors.torch').save_file(content, name)
    else:
        save_tensors(content, path)


def _broken(path: str, error: Union[Exception, str]) -> str:
    lines = str(error).splitlines() or [type(error).__name__]
    return (
        f'{path!r} is no whole checkpoint ({lines[0]}): it may be cut '
        'short, get it anew'
    )


def load_float(model: BRECQ, path: str, trust: bool = False) -> None:
    """Load trained float weights into the architecture.

    Args:
        model (BRECQ): Not yet prepared.
        path (str): A checkpoint of the bare architecture.
        trust (bool): See :func:`read_checkpoint`.

    Raises:
        ValueError: If it lacks a weight of the architecture, has one of
            another shape, or is quantized already.
    """
    content = read_checkpoint(path, trust)
    if MARK in content['state_dict']:
        raise ValueError(
            f'{path!r} is quantized already: evaluate it with tools/test.py, '
            'or give the float checkpoint that it was made from'
        )
    own = model.architecture.state_dict()
    states = content['states']
    taken, renamed, state = fit_state(
        states, own, lambda x: not (_missing(own, x) or _misshapen(own, x))
    )
    _tell_what_was_taken(path, taken, renamed, list(states))
    missing, wrong = _missing(own, state), _misshapen(own, state)
    unexpected = [k for k in state if k not in own]
    matched = sum(k in state for k in own) - len(wrong)
    story = (
        f'{path!r}: {matched} of {len(own)} tensors of '
        f'{type(model.architecture).__name__} match'
    )
    if missing or wrong:
        raise ValueError(
            '; '.join(
                [
                    f'{story}, so it is no checkpoint of this architecture',
                    *_first('missing', missing),
                    *_first('of another shape', wrong),
                    *_first('unexpected', unexpected),
                    'give the checkpoint that belongs to the config',
                ]
            )
        )
    if unexpected:
        print_log(
            '; '.join([story, *_first('not used', unexpected)]), 'current', 30
        )
    model.architecture.load_state_dict(
        {k: v for k, v in state.items() if k in own}, strict=False
    )


def _tell_what_was_taken(
    path: str, taken: str, renamed: str, found: list[str]
) -> None:
    """Say which weights a file's are, where there is more than one answer."""
    others = ', '.join(repr(key) for key in found if key != taken)
    if not (others or renamed):
        return
    said = f'{path!r}: took {taken!r}' if taken else f'{path!r}: took it'
    if renamed:
        said += f', its names {renamed}'
    if others:
        said += f'; {others} is there, too, and was not taken'
        said += ': save what you mean by itself to have another one'
    print_log(said, 'current')


def _missing(own: Mapping[str, Any], state: Mapping[str, Any]) -> list[str]:
    """Names that a network cannot do without."""
    return [
        key
        for key in own
        if key not in state and not (_is_counter(key) or is_extra(key))
    ]


def _misshapen(own: Mapping[str, Any], state: Mapping[str, Any]) -> list[str]:
    """Names whose tensors are of another shape, with both shapes."""
    return [
        f'{key} {tuple(state[key].shape)} for {tuple(own[key].shape)}'
        for key in own
        if not is_extra(key)
        and key in state
        and state[key].shape != own[key].shape
    ]


def _is_counter(key: str) -> bool:
    return key.endswith('num_batches_tracked')


def _first(what: str, keys: list[str], count: int = 3) -> list[str]:
    more = ', ...' if len(keys) > count else ''
    return (
        [f'{len(keys)} {what} ({", ".join(keys[:count])}{more})']
        if keys
        else []
    )


def read_quantized(path: str) -> dict[str, Any]:
    """Read a quantized checkpoint.

    Args:
        path (str): What ``tools/ptq.py`` wrote.

    Returns:
        dict: ``state_dict`` and ``meta``.

    Raises:
        ValueError: If it is a float checkpoint.
    """
    checkpoint = read_checkpoint(path)
    if MARK not in checkpoint['state_dict']:
        raise ValueError(
            f'{path!r} is a float checkpoint: quantize it with '
            'tools/ptq.py first'
        )
    return dict(dict(meta={}), **checkpoint)


def load_quantized(model: BRECQ, path: str) -> dict[str, Any]:
    """Load a quantized checkpoint into a freshly built model.

    Args:
        model (BRECQ): Built from the config of the run.
        path (str): What ``tools/ptq.py`` wrote.

    Returns:
        dict: The checkpoint's ``meta``.

    Raises:
        ValueError: If it is a float checkpoint, or one of another config.
    """
    checkpoint = read_quantized(path)
    state, meta = checkpoint['state_dict'], checkpoint['meta']
    before = meta.get('quantization')
    own = model.scheme.to_dict()
    other = [k for k in before or {} if before[k] != own[k]]
    if other:
        raise ValueError(
            f'{path!r} was quantized with model.quantization.{other[0]} = '
            f'{before[other[0]]}, the config says {own[other[0]]}: use the '
            'config of its run'
        )
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(
            f'{path!r} does not belong to this config: '
            f'{_second_line(error)} Use the config that lies beside the '
            'checkpoint'
        ) from error
    return meta


def _second_line(error: Exception) -> str:
    """What torch says first of the keys, cut to a readable length."""
    lines = str(error).splitlines()
    return lines[min(1, len(lines) - 1)].strip()[:300]


def fingerprint(module: nn.Module) -> str:
    """Hash of all parameters and buffers, as hexadecimal digits."""
    digest = hashlib.sha256()
    for name, value in sorted(pack_extra(module.state_dict()).items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
