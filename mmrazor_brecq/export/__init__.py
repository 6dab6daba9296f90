from .integers import decode, encode, is_encoded
from .targets import (
    TARGETS,
    OnnxRuntime,
    OpenVINO,
    Target,
    TensorRT,
    build_target,
)

__all__ = [
    'TARGETS',
    'OnnxRuntime',
    'OpenVINO',
    'Target',
    'TensorRT',
    'build_target',
    'decode',
    'encode',
    'is_encoded',
]
