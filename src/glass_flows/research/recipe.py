"""Ways to spend network evaluations, what they return, and a contest of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar, Union, cast

import numpy as np
import torch
from torch import Tensor

from ..batching import Batching
from ..errors import InvalidArgument
from ..guidance import Guidance
from ..images import ImageResult
from ..jobs import Job, Model
from ..plans import Sampler
from ..settings import Json
from ..steering import Method, Refine, Steering, Twist
from ..steering.refinement import BEGINNING
from .writing import write_json, write_markdown

Aid = Union[Guidance, Twist]
Array = np.ndarray[Any, Any]
Line = TypeVar("Line")
_TUNED = (
    "transitions", "steps", "scale", "twist", "guidance", "children", "moves", "move_steps",
)  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """A method, and the sampler that it looks into."""

    method: Method
    sampler: Sampler

    def brief(self) -> dict[str, Json]:
        """What differs from the defaults, and what is tuned, for tables and files."""
        told = {"transitions", "steps", "children", *self.sampler.differing()}
        told |= {"scale"} if isinstance(self.method, (Steering, Refine)) else set()
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


def refinement(
    particles: int, scale: float, evaluations: int, guidance: float = 1.0, **rest: Any
) -> Recipe:
    """A short ODE and as many moves as so many evaluations last, of a network under this guidance.

    What no move takes goes to the beginning.
    """
    begin = Sampler.ode(BEGINNING)
    method = Refine(particles, scale, **rest).filling(evaluations, BEGINNING, guidance)
    spare = evaluations - method.evaluations(begin, guidance)
    if spare < 0:
        raise InvalidArgument(
            f"evaluations must be at least {evaluations - spare}, those of a start and a move, "
            f"got {evaluations}"
        )
    return Recipe(method, Sampler.ode(BEGINNING + spare))


@dataclass(frozen=True)
class Report(Generic[Line]):
    """What a comparison found, a line of its table for each method, and its files."""

    methods: tuple[Line, ...]
    table: Path
    results: Path
    picture: Path
    hacking: Path | None = None


Methods = Mapping[str, Sequence[Recipe | Aid]]
"""By title, what tuning chooses from."""


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


@dataclass(frozen=True)
class Entry:
    """A method with its tuned recipe, what that returned, and all that tuning tried."""

    title: str
    tuned: Recipe
    returned: Returned
    trials: list[tuple[Recipe, Returned]]


def trials(methods: Methods) -> int:
    """How many recipes tuning tries; none where there is no choice."""
    return sum(len(choices) for choices in methods.values() if len(choices) > 1)


def contest(
    methods: Methods, follows: str, draw: Callable[[Recipe, bool], Returned]
) -> Iterator[Entry]:
    """Tune and run one after the other; the best is the first of the highest merit.

    Guidance and twists are tuned for the recipe that was chosen of the method `follows`.
    ``draw(recipe, tuning)`` runs a recipe on the part for tuning, or on the one for the figures.
    """
    tuned: dict[str, Recipe] = {}
    for title, choices in methods.items():
        recipes = [one if isinstance(one, Recipe) else tuned[follows].aided(one) for one in choices]
        tried = [(one, draw(one, True)) for one in recipes if len(recipes) > 1]
        best = max(tried, key=lambda trial: trial[1].merit)[0] if tried else recipes[0]
        tuned[title] = best
        yield Entry(title, best, draw(best, False), tried)


def write_contest(
    stem: Path, settings: Mapping[str, Any], lines: Sequence[Any], **rest: object
) -> tuple[Path, Path]:
    """STEM.md, the table, and STEM.json, all figures, of the methods that are finished."""
    told = [{**asdict(line), "tuned": line.tuned.brief()} for line in lines]
    table = write_markdown(stem.with_suffix(".md"), stem.name, lines=lines, **settings, **rest)
    payload = {"settings": settings, "methods": told, **rest}
    return table, write_json(stem.with_suffix(".json"), payload)
