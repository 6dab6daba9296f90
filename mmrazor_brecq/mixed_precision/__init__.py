from .bit_search import BitSearch
from .budget import Budget, parse_budget, parse_uniform
from .choices import Choice, find_choices
from .cost import (
    BitOperations,
    CostModel,
    LatencyTable,
    LayerBits,
    WeightBytes,
)
from .errors import FisherDiagError, FisherError
from .exact_search import ExactSearch
from .genetic_search import GeneticSearch
from .give_back import GiveBack
from .pairwise import Pairwise
from .search import (
    Infeasible,
    Problem,
    Searcher,
    SearcherConfig,
    Solution,
)
from .search_space import SearchSpace
from .sensitivity import OnFloatInputs, measure, uniform
from .shapes import CallShape, LayerShape, ModelShape, model_shape

__all__ = [
    'BitOperations',
    'BitSearch',
    'Budget',
    'CallShape',
    'Choice',
    'CostModel',
    'ExactSearch',
    'FisherDiagError',
    'FisherError',
    'GeneticSearch',
    'GiveBack',
    'Infeasible',
    'LatencyTable',
    'LayerBits',
    'LayerShape',
    'ModelShape',
    'OnFloatInputs',
    'Pairwise',
    'Problem',
    'SearchSpace',
    'Searcher',
    'SearcherConfig',
    'Solution',
    'WeightBytes',
    'find_choices',
    'measure',
    'model_shape',
    'parse_budget',
    'parse_uniform',
    'uniform',
]
