"""Read checkpoints of any kind safely, and explain what is wrong."""

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

#: Ending of files of safetensors. All other checkpoints are of torch.
SAFETENSORS = '.safetensors'


def read_checkpoint(path: str, trust: bool = False) -> dict[str, Any]:
    """Load a checkpoint file.

    Args:
        path (str): The file.
        trust (bool): Whether to run code that the file may contain.

    Returns:
        dict: The content, with the key ``state_dict``. If the file is not
        one of :func:`encode`, ``states`` has every state in it, by its key,
        and ``state_dict`` is the first of them.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not a whole checkpoint, or if it can be
            loaded only by running code, without ``trust``.
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
            f'{path!r} contains more than tensors and plain Python, and '
            'loading it can run any code that its author put in. If you '
            'trust its source, add --trust-checkpoint'
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
    except Exception as error:  # Damaged pickles raise any exception.
        raise ValueError(_broken(path, error)) from error
    states = find_states(content)
    if not states:
        raise ValueError(
            f'{path!r} has no state_dict: expected a mapping of '
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
        'or damaged, get it anew'
    )


def check_container(path: str) -> None:
    """Check that a checkpoint of this name can be written.

    Raises:
        ImportError: If the name ends in ``.safetensors``, and safetensors
            is not installed.
    """
    if path.endswith(SAFETENSORS):
        require('safetensors.torch')


@contextmanager
def errors_name(path: str) -> Iterator[None]:
    """Return a context that puts a path before the message of errors.

    Args:
        path (str): The file that is read in the context.

    Raises:
        ValueError: If one was raised in the context, with the path.
    """
    try:
        yield
    except ValueError as error:
        raise ValueError(f'{path!r}: {error}') from error


def fingerprint(module: nn.Module) -> str:
    """Return the SHA-256 of all parameters and buffers, in hexadecimal."""
    digest = hashlib.sha256()
    for name, value in sorted(pack_extra(module.state_dict()).items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
