from .files import (
    checksum_of,
    keep_older,
    load_tensors,
    once,
    remove_folder,
    save_json,
    save_tensors,
    sweep,
    tensor_bytes,
    told_of_folder,
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
    'keep_older',
    'load_float',
    'load_quantized',
    'load_tensors',
    'locked',
    'once',
    'read_checkpoint',
    'read_quantized',
    'remove_folder',
    'save_json',
    'save_quantized',
    'save_tensors',
    'sweep',
    'tensor_bytes',
    'told_of_folder',
    'write_kept',
    'write_whole',
]
