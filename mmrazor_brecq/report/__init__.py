from .bits import bits_figures, bits_table
from .earlier_runs import outdone
from .size import weight_bytes
from .tables import closing_table, export_table, main_metric, setback
from .terminal import UnitProgress

__all__ = [
    'UnitProgress',
    'bits_figures',
    'bits_table',
    'closing_table',
    'export_table',
    'main_metric',
    'outdone',
    'setback',
    'weight_bytes',
]
