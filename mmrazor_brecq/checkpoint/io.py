"""Checkpoints of any kind: read safely, with words about what is wrong."""

from __future__ import annotations

import hashlib
import logging
import os.path as osp
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Union

from mmengine.logging import print_log
from torch import nn

from .._requirements import require
from ..config.safe import check_regular
from ..functional import pack_extra
from .files import load_tensors
from .format import decode, is_checked, is_encoded
from .weights import find_states

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
            decoded = decode(content)
            if not is_checked(content):
                print_log(
                    f'{path!r} was written by an earlier version and has no '
                    'checksum: damage to it would go unnoticed. Loading and '
                    'saving it with mmrazor_brecq.load and save adds one',
                    'current',
                    logging.WARNING,
                )
            return decoded
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
    check_regular(path, 'a checkpoint')
    if path.endswith(SAFETENSORS):
        return require('safetensors.torch').load_file(path)
    return load_tensors(path, trust)


def _broken(path: str, error: Union[Exception, str]) -> str:
    lines = str(error).splitlines() or [type(error).__name__]
    return (
        f'{path!r} is no whole checkpoint ({lines[0][:300]}): it may be cut '
        'short or damaged, get it anew'
    )


def check_container(path: str) -> None:
    """See that a checkpoint of this name can be written, before any work.

    Raises:
        ImportError: If it asks for safetensors, which are not installed.
    """
    if path.endswith(SAFETENSORS):
        require('safetensors.torch')


@contextmanager
def named(path: str) -> Iterator[None]:
    """Within it what is wrong is said to be in a file.

    Args:
        path (str): The file.

    Raises:
        ValueError: If there was one, with the file's name before it.
    """
    try:
        yield
    except ValueError as error:
        raise ValueError(f'{path!r}: {error}') from error


def fingerprint(module: nn.Module) -> str:
    """Hash of all parameters and buffers, as hexadecimal digits."""
    digest = hashlib.sha256()
    for name, value in sorted(pack_extra(module.state_dict()).items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
