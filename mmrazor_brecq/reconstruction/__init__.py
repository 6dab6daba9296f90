from .nearest import NearestRounding, NonFinite
from .objectives import MSE, FisherDiag, FisherFull
from .official import OfficialFisher
from .processes import own_generator, share
from .reconstructor import BlockReconstructor
from .rows import Rows
from .store import Store
from .stream import Stream
from .unit_data import UnitData, UnitReport

__all__ = [
    'BlockReconstructor',
    'FisherDiag',
    'FisherFull',
    'MSE',
    'NearestRounding',
    'NonFinite',
    'OfficialFisher',
    'Rows',
    'Store',
    'Stream',
    'UnitData',
    'UnitReport',
    'own_generator',
    'share',
]
