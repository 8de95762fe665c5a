"""What is steered and how it is judged: the digits, or a diffusers pipeline."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, Union

import numpy as np
import torch

from ...errors import InvalidArgument
from ...models.digits import (
    IMAGE,
    digits_images,
    digits_labels,
    load_digits_classifier,
)
from ...models.shapes import Prompt, accepts, prompts
from ...models.shapes.pipeline import CALL
from ...rewards import ClassReward, evaluate
from ...steering import best_of, steer
from ..align import DIGITS_STD, digits_denoiser
from ..align_pipeline import load_pipeline, load_reward, of_shapes
from ..judging import Estimate, diversity, frechet_distance, half_samples, mean, share
from ..prompt_sets import PromptEntry, read_prompts, write_geneval
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

    def run(self, settings: dict[str, Any], target: str, images: Path) -> Found:
        """The best of N particles by the reward, run by run, and what it is worth.

        `images` is a folder for them, where they are worth keeping.
        """
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

    def run(self, settings: dict[str, Any], target: str, images: Path) -> Found:
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
                self.judge.features(shown).double().numpy()
                for shown in (best, digits_images()[digits_labels() == label])
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
    """A diffusers pipeline and a pre-trained reward; the targets are the prompts' categories.

    The best images are written where GenEval's evaluator looks for them. The Shapes pipeline has
    prompts of its own and a judge.
    """

    particles, guidance, sigma_data = 4, 1.0, 1.0

    def __init__(self, scale: Scale) -> None:
        self.seed = scale.seed
        self.scale = 0.5 if scale.strength is None else scale.strength
        self.shapes = of_shapes(scale.model)
        self.prompts: dict[str, list[PromptEntry]] = {}
        if scale.prompts:
            entries = read_prompts(scale.prompts, count=scale.of(10**9, 2))
        elif self.shapes:
            listed = prompts("test", scale.of(72, 12), scale.seed)
            entries = [PromptEntry(i, str(p), p.category) for i, p in enumerate(listed)]
        else:
            raise InvalidArgument(
                f"the model {scale.model!r} needs --prompts FILE (.txt, .jsonl, .tsv, .csv)"
            )
        for entry in entries:
            self.prompts.setdefault(entry.category or "all", []).append(entry)
        self.targets = list(self.prompts)
        self.pipe = load_pipeline(scale.model)
        self.reward = load_reward(scale.reward, model=scale.model)

    def run(self, settings: dict[str, Any], target: str, images: Path) -> Found:
        from ...integrations.diffusers import steer_pipeline

        asked = self.prompts[target]
        texts = [entry.text for entry in asked]
        call = {**CALL, "decode_batch": None} if self.shapes else {}
        labels: list[Any] = texts
        if type(self.pipe).__name__ == "DiTPipeline":
            labels = [int(t) if t.isdigit() else self.pipe.get_label_ids(t)[0] for t in texts]
        result = steer_pipeline(
            self.pipe,
            labels,
            self.reward,
            seed=self.seed,
            progress=False,
            **call,
            **settings,
        )
        for entry, image in zip(asked, result.best):
            write_geneval(images, entry, [image])
        costs = result.result.costs
        rewards = result.rewards.amax(1).double().numpy()
        found: Found = {
            "reward": mean(rewards) if len(asked) > 1 else float(rewards[0]),
            "prompts": len(asked),
            "evaluations": (costs.network_evaluations + costs.network_gradients) / len(asked),
        }
        if self.shapes:
            verdicts = accepts(
                [np.asarray(image) for image in result.best], [Prompt.parse(t) for t in texts]
            )
            accepted = np.array(verdicts, float)
            found["judge"] = share(accepted) if len(asked) > 1 else float(accepted[0])
        return found


@lru_cache(maxsize=1)
def bench_of(scale: Scale) -> Bench:
    """The bench of a model, which is loaded once for all experiments."""
    return Digits(scale) if scale.model == "digits" else Pipeline(scale)
