from .check import check_layers
from .compare import relative_difference
from .fold import fold_batch_norm
from .partition import (
    BlockPartition,
    LayerPartition,
    NetworkPartition,
    PatternPartition,
    StagePartition,
    Unit,
)
from .prepare import Door, QuantizationScheme, prepare
from .record import Call, Trace, record, run_float

__all__ = [
    'BlockPartition',
    'Call',
    'Door',
    'LayerPartition',
    'NetworkPartition',
    'PatternPartition',
    'QuantizationScheme',
    'StagePartition',
    'Trace',
    'Unit',
    'check_layers',
    'fold_batch_norm',
    'prepare',
    'record',
    'relative_difference',
    'run_float',
]
