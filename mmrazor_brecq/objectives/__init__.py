"""Objectives: errors that reconstruction minimizes, and likelihoods."""

from .base import MSE, Objective, ObjectiveConfig, takes_low_precision
from .fisher import FisherDiag
from .fisher_low_rank import FisherLowRank
from .from_output import FromOutput
from .gradients import real_outputs, teacher_gradients
from .likelihood import (
    Bernoulli,
    Categorical,
    CategoricalSketch,
    Gaussian,
    Likelihood,
    LikelihoodConfig,
)
from .official import OfficialFisher
from .suffix import SuffixLoss

__all__ = [
    'Bernoulli',
    'Categorical',
    'CategoricalSketch',
    'FisherDiag',
    'FisherLowRank',
    'FromOutput',
    'Gaussian',
    'Likelihood',
    'LikelihoodConfig',
    'MSE',
    'Objective',
    'ObjectiveConfig',
    'OfficialFisher',
    'SuffixLoss',
    'real_outputs',
    'takes_low_precision',
    'teacher_gradients',
]
