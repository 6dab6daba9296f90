"""Read and write checkpoints and other files of a run."""

from .files import (
    checksum_of,
    explain_write_errors,
    keep_older,
    load_tensors,
    remove_folder,
    remove_leftovers,
    save_json,
    save_tensors,
    tensor_bytes,
    unique_keys,
    write_kept,
    write_whole,
)
from .format import decode, encode, is_encoded
from .io import check_container, fingerprint, read_checkpoint
from .lock import locked
from .quantized import (
    build_quantized,
    check_describable,
    check_quantized,
    is_quantized,
    load_quantized,
    read_quantized,
    save_quantized,
)
from .trained import load_float
from .values import check_state

__all__ = [
    'build_quantized',
    'check_container',
    'check_quantized',
    'check_describable',
    'check_state',
    'checksum_of',
    'decode',
    'encode',
    'fingerprint',
    'is_encoded',
    'is_quantized',
    'keep_older',
    'load_float',
    'load_quantized',
    'load_tensors',
    'locked',
    'unique_keys',
    'read_checkpoint',
    'read_quantized',
    'remove_folder',
    'save_json',
    'save_quantized',
    'save_tensors',
    'remove_leftovers',
    'tensor_bytes',
    'explain_write_errors',
    'write_kept',
    'write_whole',
]
