from .augment import CutMix, Flip, MixUp, Shift
from .autocast import Autocast
from .base import Reconstructor, ReconstructorConfig
from .from_output import FromOutput
from .likelihoods import (
    Bernoulli,
    Categorical,
    CategoricalSketch,
    Gaussian,
    Likelihood,
)
from .low_rank import FisherLowRank
from .nearest import NearestRounding
from .objectives import MSE, FisherDiag, Objective, takes_low_precision
from .official import OfficialFisher
from .processes import CannotLearn, NonFinite, own_generator, share
from .reconstructor import BlockReconstructor
from .refiner import WHOLE, NetworkRefiner
from .rows import AND_BACK, FORWARD, Rows, at_once
from .stopping import WhenSettled
from .store import Store
from .stream import Stream
from .unit_data import UnitData, UnitReport

__all__ = [
    'AND_BACK',
    'Autocast',
    'Bernoulli',
    'BlockReconstructor',
    'CannotLearn',
    'Categorical',
    'CategoricalSketch',
    'CutMix',
    'FORWARD',
    'FisherDiag',
    'FisherLowRank',
    'Flip',
    'FromOutput',
    'Gaussian',
    'Likelihood',
    'MSE',
    'MixUp',
    'NearestRounding',
    'NetworkRefiner',
    'NonFinite',
    'Reconstructor',
    'ReconstructorConfig',
    'Objective',
    'OfficialFisher',
    'Rows',
    'Shift',
    'Store',
    'Stream',
    'UnitData',
    'UnitReport',
    'WHOLE',
    'WhenSettled',
    'at_once',
    'own_generator',
    'share',
    'takes_low_precision',
]
