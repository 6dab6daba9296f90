"""Reconstruction of units, and the last pass over the whole network."""

import warnings

from .. import objectives
from .augment import CutMix, Flip, MixUp, Shift
from .base import Reconstructor, ReconstructorConfig
from .block import BlockReconstructor
from .centering import far_from_zero
from .equal_ranges import LayerQuantizers, equalize
from .nearest import NearestRounding
from .network import WHOLE, NetworkRefiner, float_outputs
from .optimize import CannotLearn, Descent, NonFinite
from .reopen import close, reopen
from .stopping import WhenSettled
from .unit import UnitData, UnitReport
from .wide import widen

__all__ = [
    'BlockReconstructor',
    'CannotLearn',
    'CutMix',
    'Descent',
    'Flip',
    'MixUp',
    'NearestRounding',
    'NetworkRefiner',
    'NonFinite',
    'Reconstructor',
    'ReconstructorConfig',
    'Shift',
    'UnitData',
    'UnitReport',
    'WHOLE',
    'WhenSettled',
    'close',
    'float_outputs',
    'far_from_zero',
    'reopen',
    'LayerQuantizers',
    'equalize',
    'widen',
]


def __getattr__(name: str) -> object:
    """Return an objective, for code that imports it from here."""
    if name not in objectives.__all__:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    warnings.warn(
        f'{name} has moved: import it from mmrazor_brecq.objectives',
        DeprecationWarning,
        stacklevel=2,
    )
    return getattr(objectives, name)
