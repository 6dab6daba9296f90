from .account import Account
from .arguments import Arguments, check_arguments, example_of
from .bake import copy_network, make_plain
from .behavior import check_behavior
from .check import LARGEST, check_layers
from .compare import (
    Reference,
    Rewrite,
    apply_checked,
    relative_difference,
)
from .equalize import (
    Equalize,
    ReadNorm,
    as_rows,
    equalized_as,
    find_read_norms,
)
from .fold import fold_batch_norm
from .heads import find_value_heads
from .inputs import (
    ImageBatches,
    Images,
    Network,
    check_batch,
    check_images,
)
from .on_target import suit
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
    without_unseen,
)
from .products import show_products
from .record import Call, Recording, record
from .regions import most_images
from .residual import find_streams
from .rotated import rotate, rotate_as
from .samples import (
    Inputs,
    Samples,
    images_of,
    inputs_for,
    map_images,
    run_float,
    sampled,
    suit_samples,
)
from .target_check import (
    InputQuantizer,
    check_bits,
    input_quantizers,
    narrow,
)
from .unwrap import unwrap, unwrap_parts

__all__ = [
    'LARGEST',
    'Account',
    'Arguments',
    'BlockPartition',
    'Call',
    'Door',
    'Equalize',
    'ImageBatches',
    'Images',
    'InputQuantizer',
    'Inputs',
    'LayerPartition',
    'Network',
    'NetworkPartition',
    'Override',
    'PartitionConfig',
    'PatternPartition',
    'QuantizationConfig',
    'QuantizationScheme',
    'Reference',
    'ReadNorm',
    'Recording',
    'Rewrite',
    'Samples',
    'StagePartition',
    'Unit',
    'apply_checked',
    'as_rows',
    'check_arguments',
    'check_batch',
    'check_behavior',
    'check_bits',
    'check_images',
    'check_layers',
    'check_overrides',
    'copy_network',
    'equalized_as',
    'example_of',
    'find_read_norms',
    'find_streams',
    'find_value_heads',
    'fold_batch_norm',
    'images_of',
    'input_quantizers',
    'inputs_for',
    'leave_float',
    'make_plain',
    'map_images',
    'most_images',
    'narrow',
    'prepare',
    'record',
    'relative_difference',
    'rotate',
    'rotate_as',
    'run_float',
    'sampled',
    'show_calls',
    'show_products',
    'suit',
    'suit_samples',
    'unwrap',
    'unwrap_parts',
    'without_unseen',
]
