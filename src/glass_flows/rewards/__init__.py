"""Rewards: one number per clean sample, (B, *shape) to (B,), higher is better."""

from __future__ import annotations

from .classes import ClassReward
from .composites import Cached, Clipped, Decoded, Normalised, Product, WeightedSum
from .protocol import (
    FunctionReward,
    Reward,
    RewardLike,
    as_reward,
    evaluate,
    evaluate_with_gradient,
)

__all__ = [
    "Cached",
    "ClassReward",
    "Clipped",
    "Decoded",
    "FunctionReward",
    "Normalised",
    "Product",
    "Reward",
    "RewardLike",
    "WeightedSum",
    "as_reward",
    "evaluate",
    "evaluate_with_gradient",
]
