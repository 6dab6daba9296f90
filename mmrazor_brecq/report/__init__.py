from .tables import closing_table
from .terminal import UnitProgress
from .size import weight_bytes

__all__ = ['UnitProgress', 'closing_table', 'weight_bytes']
