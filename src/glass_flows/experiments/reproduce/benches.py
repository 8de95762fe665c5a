"""What is steered and how it is judged: the digits, or a diffusers pipeline."""

from __future__ import annotations

from typing import Any, Protocol, Union

import numpy as np
import torch

from ...models.digits import (
    IMAGE,
    digits_images,
    digits_labels,
    load_digits_classifier,
)
from ...models.shapes import CATEGORIES, accepts, prompts
from ...models.shapes.pipeline import CALL
from ...rewards import ClassReward, evaluate
from ...steering import best_of, steer
from ..align import DIGITS_STD, digits_denoiser
from ..align_pipeline import load_pipeline, load_reward, of_shapes
from ..judging import Estimate, diversity, frechet_distance, half_samples, mean, share
from .base import Scale

__all__ = ["Bench", "Digits", "Pipeline", "bench_of"]

Found = dict[str, Union[Estimate, float]]


class Bench(Protocol):
    """A model with a reward, targets to steer towards, and tuned strengths.

    Attributes
    ----------
    targets : list of str
    particles : int
        N.
    scale, guidance : float
        λ, and the scale of guidance through the reward.
    sigma_data : float
        Standard deviation of the data.
    """

    targets: list[str]
    particles: int
    scale: float
    guidance: float
    sigma_data: float

    def run(self, settings: dict[str, Any], target: str) -> Found:
        """The best of N particles by the reward, run by run, and what it is worth."""
        ...


class Digits:
    """The bundled digits: each class is a target, and an independent classifier the judge."""

    particles, scale, guidance, sigma_data = 4, 16.0, 1.0, DIGITS_STD

    def __init__(self, scale: Scale) -> None:
        self.runs, self.seed = scale.of(96, 16), scale.seed
        self.targets = [str(n) for n in range(scale.of(10, 2))]
        self.denoiser = digits_denoiser()
        self.reward, self.judge = (
            load_digits_classifier("reward"),
            load_digits_classifier("judge"),
        )

    def run(self, settings: dict[str, Any], target: str) -> Found:
        label, given = int(target), dict(settings)
        sampler = best_of if given.pop("method", "steering") == "best-of-n" else steer
        result = sampler(
            self.denoiser,
            ClassReward(self.reward, label),
            shape=IMAGE,
            populations=self.runs,
            seed=self.seed + 1009 * label,
            progress=False,
            **given,
        )
        best = result.best
        with torch.no_grad():
            verdicts = (self.judge(best).argmax(1) == label).double().numpy()
            features, real = (
                self.judge.features(images).double().numpy()
                for images in (best, digits_images()[digits_labels() == label])
            )
        return {
            "judge": share(verdicts),
            "reward": mean(result.rewards.amax(1).double().numpy()),
            "other reward": mean(
                evaluate(ClassReward(self.judge, label), best, "the judge").double().numpy()
            ),
            "Fréchet": half_samples(features, lambda s: frechet_distance(s, real), rounds=30),
            "diversity": half_samples(features, diversity, rounds=30),
            "evaluations": (result.network_evaluations + result.network_gradients) / self.runs,
        }


class Pipeline:
    """A diffusers pipeline; the Shapes pipeline has categories as targets, and a judge."""

    particles, scale, guidance, sigma_data = 4, 0.5, 1.0, 1.0

    def __init__(self, scale: Scale) -> None:
        self.seed = scale.seed
        self.pipe = load_pipeline(scale.model)
        self.reward = load_reward(scale.reward, model=scale.model)
        self.shapes = of_shapes(scale.model)
        self.prompts: dict[str, list[Any]] = {
            category: prompts("test", scale.of(12, 2), scale.seed, (category,))
            for category in CATEGORIES[1:]
        }
        self.targets = list(self.prompts)

    def run(self, settings: dict[str, Any], target: str) -> Found:
        from ...integrations.diffusers import steer_pipeline

        asked = self.prompts[target]
        call = {**CALL, "decode_batch": None} if self.shapes else {}
        result = steer_pipeline(
            self.pipe,
            [str(prompt) for prompt in asked],
            self.reward,
            seed=self.seed,
            progress=False,
            **call,
            **settings,
        )
        costs = result.result.costs
        found: Found = {
            "reward": mean(result.rewards.amax(1).double().numpy()),
            "evaluations": (costs.network_evaluations + costs.network_gradients) / len(asked),
        }
        if self.shapes:
            verdicts = accepts([np.asarray(image) for image in result.best], asked)
            found["judge"] = share(np.array(verdicts, float))
        return found


def bench_of(scale: Scale) -> Bench:
    """The bench of a model."""
    return Digits(scale) if scale.model == "digits" else Pipeline(scale)
