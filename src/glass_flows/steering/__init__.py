"""Steering: particles, weights and resampling at transition boundaries."""

from __future__ import annotations

from .resampling import RESAMPLERS
from .search import best_of
from .smc import SteeringResult, SteeringStep, check_settings, iterate_steering, steer
from .weights import LogWeights

__all__ = [
    "RESAMPLERS",
    "LogWeights",
    "SteeringResult",
    "SteeringStep",
    "best_of",
    "check_settings",
    "iterate_steering",
    "steer",
]
