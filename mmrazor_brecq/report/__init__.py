from .analysis import analysis_page, analysis_table, ranked
from .bits import bits_figures, bits_table
from .earlier_runs import outdone
from .findings import findings
from .html import ShownReport, page, write
from .plan import plan_table
from .size import weight_bytes
from .tables import (
    closing_table,
    export_table,
    is_error,
    main_metric,
    setback,
)
from .terminal import UnitProgress

__all__ = [
    'ShownReport',
    'UnitProgress',
    'analysis_page',
    'analysis_table',
    'bits_figures',
    'bits_table',
    'closing_table',
    'export_table',
    'findings',
    'is_error',
    'main_metric',
    'outdone',
    'page',
    'plan_table',
    'ranked',
    'setback',
    'weight_bytes',
    'write',
]
