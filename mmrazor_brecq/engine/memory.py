"""How much memory activations may take, and the store that keeps to it."""

from __future__ import annotations

import re
from typing import Annotated, Optional, Union

import psutil
import torch
from pydantic import AfterValidator, Field

from ..activations import Store
from ..validation import KeyPath, validate

UNITS = {
    'B': 1,
    **{f'{c}B': 1000**i for i, c in enumerate('KMGT', 1)},
    **{f'{c}IB': 1024**i for i, c in enumerate('KMGT', 1)},
}
#: The default budget: half of the free memory, but at most as many bytes as
#: a laptop can spare. With it, a run of a small network on images of 224
#: pixels takes less than 3 GB in all.
DEFAULT_MEMORY, MAX_DEFAULT_BYTES = 'auto', 3 * 2**29
#: Bytes of a budget that are reserved for activations in use.
RESERVED_BYTES = 256 * 2**20


def memory_budget(
    memory: Union[str, float, None], device: torch.device
) -> Optional[int]:
    """Return how many bytes of activations may be cached on a device.

    Args:
        memory (str | float, optional): A size such as ``'1GiB'``, or a
            fraction of the free memory, up to 1. ``'auto'`` is half of the
            free memory, but at most 1.5 GiB. None is no limit.
        device (torch.device): The device of the model.

    Raises:
        ValueError: If ``memory`` is none of these.
    """
    key = KeyPath('test_cfg.calibration.memory', 'the calibration')
    validate(memory, Memory, key)
    if memory is None:
        return None
    if memory == DEFAULT_MEMORY:
        return min(MAX_DEFAULT_BYTES, memory_budget(0.5, device) or 0)
    if isinstance(memory, str):
        return _size(memory)
    if device.type == 'cpu':
        return int(memory * psutil.virtual_memory().available)
    free, _ = torch.get_device_module(device).mem_get_info(device)
    return int(memory * free)


def _size(text: str) -> int:
    """Return the bytes of a size such as ``'1GiB'``, 0 if it is none."""
    match = re.fullmatch(r'(\d+\.?\d*) *([KMGT]?I?B)', text.upper())
    if not match or match[2] not in UNITS:
        return 0
    return int(float(match[1]) * UNITS[match[2]])


def _known(memory: Union[str, float, None]) -> Union[str, float, None]:
    """Return a budget unchanged, if it is one."""
    if isinstance(memory, str):
        fits = memory == DEFAULT_MEMORY or _size(memory) > 0
    else:
        fits = memory is None or 0 < memory <= 1
    if not fits:
        raise ValueError(MEMORY)
    return memory


MEMORY = (
    "a size such as '1GiB' or '500MB', a fraction of the free memory (above "
    "0, up to 1), 'auto' for half of it but at most 1.5 GiB, or None for no "
    'limit'
)
#: Memory for the activations of all images.
Memory = Annotated[
    Union[str, float, None],
    AfterValidator(_known),
    Field(description=MEMORY),
]


def activation_store(
    memory: Union[str, float, None], device: torch.device, folder: str
) -> Store:
    """Return a store for the activations of all images.

    Args:
        memory (str | float, optional): As for :func:`memory_budget`.
            :data:`RESERVED_BYTES` of it are for activations in use.
        device (torch.device): The device of the model.
        folder (str): Folder of the files with the activations that exceed
            the budget.
    """
    return Store(memory_budget(memory, device), folder, RESERVED_BYTES)
