"""Steering: particles, weights and resampling at transition boundaries, and search."""

from __future__ import annotations

from .api import beam, best_of, greedy, iterate_steering, steer
from .method import Method
from .methods import METHODS, method_of, read_method
from .potentials import POTENTIALS
from .resampling import RESAMPLERS
from .results import Costs, SearchResult, SteeringResult
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
    "Adaptive",
    "Beam",
    "BestOf",
    "Costs",
    "Greedy",
    "LogWeights",
    "Look",
    "Method",
    "PosteriorValue",
    "Recorder",
    "Saved",
    "SearchResult",
    "Shards",
    "Steering",
    "SteeringResult",
    "SteeringStep",
    "Step",
    "Twist",
    "beam",
    "best_of",
    "greedy",
    "iterate_steering",
    "method_of",
    "read_method",
    "steer",
]
