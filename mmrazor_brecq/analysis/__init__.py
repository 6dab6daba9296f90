from .costs import divergence, unit_costs
from .describe import describe
from .layers import layer_details
from .swap import swapped

__all__ = [
    'describe',
    'divergence',
    'layer_details',
    'swapped',
    'unit_costs',
]
