from .augment import CutMix, Flip, MixUp, Shift
from .autocast import Autocast, takes_short, widened
from .low_rank import FisherLowRank
from .nearest import NearestRounding
from .objectives import MSE, FisherDiag, FisherFull
from .official import OfficialFisher
from .processes import NonFinite, own_generator, share
from .reconstructor import BlockReconstructor
from .refiner import WHOLE, NetworkRefiner
from .rows import FORWARD, Rows, at_once
from .stopping import WhenSettled
from .store import Store
from .stream import Stream
from .unit_data import UnitData, UnitReport

__all__ = [
    'FORWARD',
    'Autocast',
    'BlockReconstructor',
    'CutMix',
    'FisherDiag',
    'FisherFull',
    'FisherLowRank',
    'Flip',
    'MSE',
    'MixUp',
    'NearestRounding',
    'NetworkRefiner',
    'NonFinite',
    'OfficialFisher',
    'Rows',
    'Shift',
    'Store',
    'Stream',
    'UnitData',
    'UnitReport',
    'WHOLE',
    'WhenSettled',
    'own_generator',
    'share',
    'at_once',
    'takes_short',
    'widened',
]
