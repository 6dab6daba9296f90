from .costs import divergence, unit_costs
from .describe import describe
from .layers import layer_details
from .single_layers import SingleLayers
from .swap import swapped

__all__ = [
    'SingleLayers',
    'describe',
    'divergence',
    'layer_details',
    'swapped',
    'unit_costs',
]
