from .detections import decoder_of
from .names import DECODES
from .targets import (
    TARGETS,
    OnnxRuntime,
    OpenVINO,
    Target,
    TensorRT,
    build_target,
)

__all__ = [
    'DECODES',
    'TARGETS',
    'OnnxRuntime',
    'OpenVINO',
    'Target',
    'TensorRT',
    'build_target',
    'decoder_of',
]
