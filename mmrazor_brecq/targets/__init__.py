"""What devices compute, as data: a YAML file for each runtime."""

from .description import (
    FLOAT,
    ActivationLimits,
    Description,
    LayerLimits,
    Operators,
    ProductLimits,
    WeightLimits,
)
from .read import TARGETS, TargetConfig, find_target, known_targets, read_file

__all__ = [
    'FLOAT',
    'TARGETS',
    'ActivationLimits',
    'Description',
    'LayerLimits',
    'Operators',
    'ProductLimits',
    'TargetConfig',
    'WeightLimits',
    'find_target',
    'known_targets',
    'read_file',
]
