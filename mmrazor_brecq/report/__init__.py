from .bits import bits_figures, bits_table
from .size import weight_bytes
from .tables import closing_table, export_table, outdone, setback
from .terminal import UnitProgress

__all__ = [
    'UnitProgress',
    'bits_figures',
    'bits_table',
    'closing_table',
    'export_table',
    'outdone',
    'setback',
    'weight_bytes',
]
