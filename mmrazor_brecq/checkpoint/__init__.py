from .files import (
    keep_older,
    save_json,
    save_tensors,
    written_whole,
)
from .format import decode, encode, is_encoded
from .io import (
    check_container,
    check_quantized,
    fingerprint,
    load_float,
    load_quantized,
    read_checkpoint,
    read_quantized,
    save_quantized,
)

__all__ = [
    'check_container',
    'check_quantized',
    'decode',
    'encode',
    'fingerprint',
    'is_encoded',
    'keep_older',
    'load_float',
    'load_quantized',
    'read_checkpoint',
    'read_quantized',
    'save_json',
    'save_quantized',
    'save_tensors',
    'written_whole',
]
