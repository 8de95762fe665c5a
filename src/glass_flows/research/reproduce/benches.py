"""What is steered and how it is judged: the digits, or a model of images of prompts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from ...errors import InvalidArgument
from ...jobs import Model
from ...jobs.models import Digits, Shapes
from ...jobs.prompts import PromptEntry, read_prompts, write_geneval
from ...measures import diversity, half_samples, mean, share
from ...pixels import to_pictures
from ...plans import Sampler
from ...rewards import ClassReward, evaluate
from ...steering import BestOf, Steering
from ...steering.loop import Watch
from ...worlds.shapes import prompts
from ..digits import draw_digits, frechet, judge_features, real_features
from ..recipe import Aid, Recipe, judged
from .base import Found, Scale, model_of


class Bench(ABC):
    """A model with a reward, targets to steer towards, and tuned strengths.

    Attributes
    ----------
    model : Model
    targets : list of dict
        What is steered towards, one at a time, under "target"; other entries sort them.
    particles : int
        N.
    scale, guidance : float
        λ, and the scale of guidance through the reward.
    """

    model: Model
    targets: list[dict[str, str]]
    scale: float
    particles, guidance = 4, 1.0

    def steering(self, sampler: Sampler, aid: Aid | None = None) -> Recipe:
        """Steering at λ, plain or with guidance or twisted noise."""
        plain = Recipe(Steering(self.particles, self.scale), sampler)
        if aid is None:
            return plain
        return plain.aided(replace(aid, sigma_data=self.model.sigma_data))

    @abstractmethod
    def run(self, recipe: Recipe, target: str, images: Path) -> Found:
        """The best of N particles by the reward, population by population, and what it is worth.

        `images` is a folder for them, where they are worth keeping.
        """


class DigitsBench(Bench):
    """The digits: each class is a target, and an independent classifier the judge."""

    model: Digits
    scale = 16.0

    def __init__(self, model: Digits, scale: Scale) -> None:
        self.model, self.seed, self.populations = model, scale.seed, scale.of(96, 16)
        self.targets = [{"target": str(n)} for n in range(scale.of(10, 2))]

    def run(self, recipe: Recipe, target: str, images: Path) -> Found:
        label = int(target)
        found = draw_digits(self.model, recipe, label, self.populations, self.seed)
        judge = ClassReward(self.model.classifiers["judge"], label)
        features = judge_features(self.model, found.images)
        return {
            "judge": share(found.verdicts),
            "reward": mean(found.rewards),
            "other reward": mean(evaluate(judge, found.images, "the judge").double().numpy()),
            "Fréchet": frechet(features, real_features(self.model, label), rounds=30),
            "diversity": half_samples(features, diversity, rounds=30),
            "evaluations": (found.evaluations + found.gradients) / self.populations,
        }


class ImagesBench(Bench):
    """A model of images of prompts, and a pre-trained reward; the targets are the prompts.

    The best images are written where GenEval's evaluator looks for them. The Shapes world has
    prompts of its own and a judge.
    """

    def __init__(self, model: Model, scale: Scale) -> None:
        self.model, self.seed, self.named = model, scale.seed, scale.reward
        self.scale = 0.5 if scale.strength is None else scale.strength
        entries = _entries(model, scale)
        for entry in entries:
            model.read_prompts([entry.text])
        self.prompts = {f"{entry.number:05}": entry for entry in entries}
        self.targets = [
            {"category": entry.category or "all", "target": name}
            for name, entry in self.prompts.items()
        ]
        self.reward: Any = model.reward(Recipe(BestOf(), Sampler()).job(model, reward=self.named))
        self.others = [model.load_reward(name) for name in scale.also]
        model.load()

    def run(self, recipe: Recipe, target: str, images: Path) -> Found:
        entry = self.prompts[target]
        sentence, seed = self.model.read_prompts([entry.text]), self.seed + 1009 * entry.number
        job = recipe.job(self.model, prompts=sentence, reward=self.named, seed=seed)
        drawn = self.model.run(job, Watch(progress=False))
        best, every = drawn.image, drawn.images
        write_geneval(images, entry, [best])
        costs = drawn.result.costs
        found: Found = {
            "reward": float(drawn.rewards.max()),
            "evaluations": costs.network_evaluations + costs.network_gradients,
        }
        for reward in self.others:
            score = float(evaluate(reward, to_pictures([best]), "the best image", [entry.text]))
            found |= {reward.name: score, "other reward": found.get("other reward", score)}
        if len(every) > 1 and hasattr(self.reward, "features"):
            features = self.reward.features(to_pictures(every))
            found["diversity"] = diversity(features.double().cpu().numpy())
        if verdicts := judged(self.model, drawn):
            found["judge"] = float(verdicts[0])
        return found


def _entries(model: Model, scale: Scale) -> list[PromptEntry]:
    if scale.prompts:
        return read_prompts(scale.prompts, count=scale.of(10**9, 2))
    if isinstance(model, Shapes):
        listed = prompts("test", scale.of(120, 6), scale.seed)
        return [PromptEntry(i, str(p), p.category) for i, p in enumerate(listed)]
    raise InvalidArgument(
        f"the model {scale.model!r} needs --prompts FILE (.txt, .jsonl, .tsv, .csv)"
    )


@lru_cache(maxsize=1)
def bench_of(scale: Scale) -> Bench:
    """The bench of a model, which is made once for all experiments."""
    model = model_of(scale.model)
    if isinstance(model, Digits):
        return DigitsBench(model, scale)
    return ImagesBench(model, scale)
