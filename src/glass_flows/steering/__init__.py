"""Steering: particles, weights and resampling at transition boundaries, and search."""

from __future__ import annotations

from .potentials import POTENTIALS
from .resampling import RESAMPLERS
from .run import Costs, SearchResult
from .saved import Recorder, Saved
from .schedules import Adaptive
from .search import beam, best_of, greedy
from .shards import Shards
from .smc import (
    Steering,
    SteeringResult,
    SteeringStep,
    iterate_steering,
    steer,
    steer_boundaries,
)
from .twist import Twist
from .values import Look, PosteriorValue
from .weights import LogWeights

__all__ = [
    "POTENTIALS",
    "RESAMPLERS",
    "Adaptive",
    "Costs",
    "LogWeights",
    "Look",
    "PosteriorValue",
    "Recorder",
    "Saved",
    "SearchResult",
    "Shards",
    "Steering",
    "SteeringResult",
    "SteeringStep",
    "Twist",
    "beam",
    "best_of",
    "greedy",
    "iterate_steering",
    "steer",
    "steer_boundaries",
]
