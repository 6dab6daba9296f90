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
]
