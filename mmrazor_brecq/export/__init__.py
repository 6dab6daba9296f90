from .detections import decoder_of
from .names import DECODES
from .targets import TARGETS, Target, build_target

__all__ = [
    'DECODES',
    'TARGETS',
    'Target',
    'build_target',
    'decoder_of',
]
