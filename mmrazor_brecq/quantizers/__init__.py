"""Quantizers of weights and activations, observers and roundings."""

from .activation import ActivationQuantizer, MaskPool
from .logarithmic import LogActivationQuantizer
from .observers import LpChoice, LpObserver, MinMaxObserver, Observer
from .rounding import AdaRound, Nearest, Rounding
from .weight import WeightQuantizer

__all__ = [
    'ActivationQuantizer',
    'AdaRound',
    'LogActivationQuantizer',
    'LpChoice',
    'LpObserver',
    'MaskPool',
    'MinMaxObserver',
    'Nearest',
    'Observer',
    'Rounding',
    'WeightQuantizer',
]
