"""What a recipe is worth on the digits: its best images, judged and set beside real ones."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from ..jobs.models import Digits
from ..measures import Measure, frechet_distance, half_samples
from ..steering.loop import Watch
from ..worlds.digits import digits_images, digits_labels
from .recipe import Array, Recipe, Returned


def draw_digits(model: Digits, recipe: Recipe, label: int, populations: int, seed: int) -> Returned:
    """Populations steered towards a digit; every digit has seeds of its own."""
    job = recipe.job(
        model, reward=f"class:{label}", populations=populations, seed=seed + 1009 * label
    )
    result = model.steer(job, Watch(progress=False))
    best, rewards = result.best, result.rewards.amax(1)
    verdicts = np.array(model.verdicts(best[:, None], [label] * populations), float)[:, 0]
    costs = result.network_evaluations, result.network_gradients
    return Returned(best, rewards.double().numpy(), verdicts, *costs)


@torch.no_grad()
def judge_features(model: Digits, images: Tensor) -> Array:
    """The judge's features of digits, (B, 64)."""
    found: Array = model.classifiers["judge"].features(images).double().numpy()
    return found


@lru_cache(maxsize=11)
def real_features(model: Digits, label: int | None = None) -> Array:
    """Of the real digits, or those of one class."""
    images = digits_images()
    return judge_features(model, images if label is None else images[digits_labels() == label])


def frechet(features: Array, real: Array, rounds: int = 100) -> Measure:
    """Fréchet distance to real digits in the judge's features, with its error."""
    return half_samples(features, lambda some: frechet_distance(some, real), rounds=rounds)
