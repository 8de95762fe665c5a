"""Steering: particles, weights and resampling at transition boundaries."""

from __future__ import annotations

from .resampling import RESAMPLERS
from .search import best_of
from .smc import SteeringResult, SteeringStep, iterate_steering, steer
from .weights import LogWeights

__all__ = [
    "RESAMPLERS",
    "LogWeights",
    "SteeringResult",
    "SteeringStep",
    "best_of",
    "iterate_steering",
    "steer",
]
