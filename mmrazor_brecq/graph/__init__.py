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
    'fold_batch_norm',
    'prepare',
    'record',
    'run_float',
]
