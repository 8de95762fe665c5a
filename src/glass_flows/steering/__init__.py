"""Steering: particles, weights and resampling at transition boundaries, and search."""

from .api import beam, best_of, greedy, iterate_steering, refine, steer
from .method import Method
from .methods import METHODS, method_of, read_method
from .overoptimisation import OverOptimised, over_optimised
from .potentials import POTENTIALS
from .refinement import Acceptance, Ramp, Refine, RefineStep
from .resampling import RESAMPLERS
from .results import Costs, RefinedResult, SearchResult, SteeringResult, WeightedResult
from .schedules import Adaptive
from .search import Beam, Greedy
from .shards import Shards
from .smc import BestOf, Steering, SteeringStep
from .state import Recorder, Saved, Step
from .twist import Twist
from .values import Look, PosteriorValue
from .weights import LogWeights

__all__ = [
    "METHODS",
    "POTENTIALS",
    "RESAMPLERS",
    "Acceptance",
    "Adaptive",
    "Beam",
    "BestOf",
    "Costs",
    "Greedy",
    "LogWeights",
    "Look",
    "Method",
    "OverOptimised",
    "PosteriorValue",
    "Ramp",
    "Recorder",
    "Refine",
    "RefineStep",
    "RefinedResult",
    "Saved",
    "SearchResult",
    "Shards",
    "Steering",
    "SteeringResult",
    "SteeringStep",
    "Step",
    "Twist",
    "WeightedResult",
    "beam",
    "best_of",
    "greedy",
    "iterate_steering",
    "method_of",
    "over_optimised",
    "read_method",
    "refine",
    "steer",
]
