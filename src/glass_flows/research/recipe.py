"""Ways to spend network evaluations, and what they return."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Union, cast

import numpy as np
import torch
from torch import Tensor

from ..batching import Batching
from ..guidance import Guidance
from ..images import ImageResult
from ..jobs import Job, Model
from ..plans import Sampler
from ..settings import Json
from ..steering import Method, Steering, Twist

__all__ = ["Aid", "Array", "Recipe", "Returned", "judged"]

Aid = Union[Guidance, Twist]
Array = np.ndarray[Any, Any]
_TUNED = ("transitions", "steps", "scale", "twist", "guidance", "children")


@dataclass(frozen=True)
class Recipe:
    """A method, and the sampler that it looks into."""

    method: Method
    sampler: Sampler

    def brief(self) -> dict[str, Json]:
        """What differs from the defaults, and what is tuned, for tables and files."""
        told = {"transitions", "steps", "children", *self.sampler.differing()}
        told |= {"scale"} if isinstance(self.method, Steering) else set()
        told |= set(self.method.differing())
        every = {**self.sampler.every(), **self.method.every()}
        return {name: value for name, value in every.items() if name in told}

    def __str__(self) -> str:
        """What is tuned, for a line of a table."""
        brief = self.brief()
        return ", ".join(f"{name} {brief[name]}" for name in _TUNED if name in brief)

    def aided(self, aid: Aid) -> Recipe:
        """With reward guidance, or with twisted noise."""
        changed: dict[str, Any] = {"guidance" if isinstance(aid, Guidance) else "twist": aid}
        return replace(self, method=replace(cast(Steering, self.method), **changed))

    def job(self, model: Model, **rest: Any) -> Job:
        """For a model, with the batching of its own; `rest` are further fields of the job."""
        batching = Batching(**model.batching)
        return Job(
            model.name, self.method, self.sampler, batching=batching, loading=model.loading, **rest
        )


@dataclass(frozen=True)
class Returned:
    """The best image by the reward of every population; arrays are over the populations.

    Attributes
    ----------
    images : Tensor
        (P, *shape).
    rewards, verdicts : array
        Verdicts are 1 where the judge sees what was asked for, else 0.
    evaluations, gradients : float
        Forward and backward passes of the network, of all particles together.
    """

    images: Tensor
    rewards: Array
    verdicts: Array
    evaluations: float
    gradients: float = 0

    @classmethod
    def joined(cls, parts: Sequence[Returned]) -> Returned:
        return cls(
            torch.cat([one.images for one in parts]),
            np.concatenate([one.rewards for one in parts]),
            np.concatenate([one.verdicts for one in parts]),
            sum(one.evaluations for one in parts),
            sum(one.gradients for one in parts),
        )

    @property
    def merit(self) -> tuple[float, float]:
        """What tuning maximises: the judge, then the reward."""
        return float(self.verdicts.mean()), float(self.rewards.mean())


def judged(model: Model, result: ImageResult) -> list[bool] | None:
    """What the model's judge says of the best image for each prompt; None where there is none."""
    verdicts = model.judge(result)
    if verdicts is None:
        return None
    return [row[best] for row, best in zip(verdicts, result.rewards.argmax(1).tolist())]
