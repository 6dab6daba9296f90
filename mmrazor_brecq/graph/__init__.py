from .account import Account
from .bake import copy_network, make_plain
from .behavior import check_behavior
from .check import LARGEST, check_layers
from .compare import (
    Reference,
    Rewrite,
    apply_checked,
    relative_difference,
)
from .fold import fold_batch_norm
from .inputs import Images, Network, check_batch
from .partition import (
    BlockPartition,
    LayerPartition,
    NetworkPartition,
    PartitionConfig,
    PatternPartition,
    StagePartition,
    Unit,
)
from .past_call import show_calls
from .prepare import (
    Door,
    Override,
    QuantizationConfig,
    QuantizationScheme,
    check_overrides,
    leave_float,
    prepare,
)
from .record import Call, Recording, record, run_float
from .unwrap import unwrap, unwrap_parts

__all__ = [
    'LARGEST',
    'Account',
    'BlockPartition',
    'Call',
    'Door',
    'Images',
    'LayerPartition',
    'Network',
    'NetworkPartition',
    'Override',
    'PartitionConfig',
    'PatternPartition',
    'QuantizationConfig',
    'QuantizationScheme',
    'Reference',
    'Rewrite',
    'StagePartition',
    'Recording',
    'Unit',
    'apply_checked',
    'check_batch',
    'check_behavior',
    'check_layers',
    'check_overrides',
    'copy_network',
    'fold_batch_norm',
    'leave_float',
    'make_plain',
    'prepare',
    'record',
    'relative_difference',
    'run_float',
    'show_calls',
    'unwrap',
    'unwrap_parts',
]
