from .augment import CutMix, Flip, MixUp, Shift
from .autocast import Autocast, takes_short, widened
from .from_output import FromOutput
from .likelihoods import (
    Bernoulli,
    Categorical,
    CategoricalSketch,
    Gaussian,
    Likelihood,
)
from .low_rank import FisherLowRank
from .nearest import NearestRounding, ReconstructorConfig
from .objectives import MSE, FisherDiag, FisherFull
from .official import OfficialFisher
from .processes import CannotLearn, NonFinite, own_generator, share
from .reconstructor import BlockReconstructor
from .refiner import WHOLE, NetworkRefiner
from .rows import FORWARD, Rows, at_once
from .stopping import WhenSettled
from .store import Store
from .stream import Stream
from .unit_data import UnitData, UnitReport

__all__ = [
    'Autocast',
    'Bernoulli',
    'BlockReconstructor',
    'CannotLearn',
    'Categorical',
    'CategoricalSketch',
    'CutMix',
    'FORWARD',
    'FisherDiag',
    'FisherFull',
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
    'ReconstructorConfig',
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
    'takes_short',
    'widened',
]
