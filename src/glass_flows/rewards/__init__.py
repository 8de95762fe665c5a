"""Rewards: one number per clean sample, (B, *shape) to (B,), higher is better."""

from .base import (
    Clipped,
    FunctionReward,
    Product,
    Reward,
    RewardLike,
    WeightedSum,
    as_reward,
    evaluate,
    evaluate_with_gradient,
)
from .classifier import ClassReward
from .composites import Cached, Decoded, Frames, Normalised
from .forms import OfImages
from .videos import OfVideos, Viewing

__all__ = [
    "Cached",
    "ClassReward",
    "Clipped",
    "Decoded",
    "Frames",
    "FunctionReward",
    "Normalised",
    "OfImages",
    "OfVideos",
    "Product",
    "Reward",
    "RewardLike",
    "Viewing",
    "WeightedSum",
    "as_reward",
    "evaluate",
    "evaluate_with_gradient",
]
