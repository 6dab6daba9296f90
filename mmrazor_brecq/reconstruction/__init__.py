from .objectives import MSE, FisherDiag, FisherFull, OfficialFisher
from .reconstructor import BlockReconstructor, NearestRounding
from .rows import Rows
from .stream import Stream
from .unit_data import UnitData, UnitReport

__all__ = [
    'BlockReconstructor',
    'FisherDiag',
    'FisherFull',
    'MSE',
    'NearestRounding',
    'OfficialFisher',
    'Rows',
    'Stream',
    'UnitData',
    'UnitReport',
]
