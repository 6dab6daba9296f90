from .nearest import NearestRounding, NonFinite
from .objectives import MSE, FisherDiag, FisherFull
from .official import OfficialFisher
from .reconstructor import BlockReconstructor
from .rows import Rows
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
    'Stream',
    'UnitData',
    'UnitReport',
]
