from .bit_search import BitSearch
from .budget import Budget, parse_budget, parse_uniform
from .choices import Choice, SearchSpace, find_choices
from .cost import BitOperations, CostModel, LatencyTable, WeightBytes
from .errors import FisherDiagError, FisherError
from .pairwise import Pairwise
from .search import (
    ExactSearch,
    GeneticSearch,
    Infeasible,
    Problem,
    Searcher,
    SearcherConfig,
    Solution,
)
from .sensitivity import Alone, measure, uniform
from .shapes import CallShape, LayerShape, ModelShape, model_shape

__all__ = [
    'Alone',
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
    'Infeasible',
    'LatencyTable',
    'LayerShape',
    'ModelShape',
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
