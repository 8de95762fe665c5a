"""Ways to spend network evaluations, and the choice among them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar, Union, cast

from ..batching import Batching
from ..guidance import Guidance
from ..images import ImageResult
from ..jobs import Job, Model
from ..plans import Sampler
from ..settings import Json
from ..steering import Method, Steering, Twist

__all__ = ["Aid", "Contender", "Recipe", "judged", "tune"]

Aid = Union[Guidance, Twist]


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

    def aided(self, aid: Aid) -> Recipe:
        """With reward guidance, or with twisted noise."""
        method = cast(Steering, self.method)
        if isinstance(aid, Guidance):
            return replace(self, method=replace(method, guidance=aid))
        return replace(self, method=replace(method, twist=aid))

    def job(self, model: Model, **rest: Any) -> Job:
        """For a model, with the batching of its own; `rest` are further fields of the job."""
        batching = Batching(**model.batching)
        return Job(
            model.name, self.method, self.sampler, batching=batching, loading=model.loading, **rest
        )


@dataclass(frozen=True)
class Contender:
    """One line of a comparison.

    Attributes
    ----------
    candidates : tuple of Recipe
        Among which tuning chooses.
    follows : str or None
        Title of another, whose tuned recipe is taken with each of the `aids` in their place.
    """

    title: str
    candidates: tuple[Recipe, ...] = ()
    follows: str | None = None
    aids: tuple[Aid, ...] = ()

    def options(self, tuned: Mapping[str, Recipe]) -> tuple[Recipe, ...]:
        """What there is to choose from, once those before it are `tuned`."""
        if self.follows is None:
            return self.candidates
        return tuple(tuned[self.follows].aided(aid) for aid in self.aids)

    @property
    def trials(self) -> int:
        """How many recipes are tried; none where there is no choice."""
        count = len(self.candidates if self.follows is None else self.aids)
        return count if count > 1 else 0


class _Tried(Protocol):
    @property
    def merit(self) -> tuple[float, float]:
        """What tuning maximises: the judge, then the reward."""
        ...


T = TypeVar("T", bound=_Tried)


def tune(
    options: Sequence[Recipe], trial: Callable[[Recipe], T]
) -> tuple[Recipe, list[tuple[Recipe, T]]]:
    """The recipe of the highest merit, the first of equals, and what all of them came to."""
    if len(options) == 1:
        return options[0], []
    tried = [(recipe, trial(recipe)) for recipe in options]
    return max(tried, key=lambda one: one[1].merit)[0], tried


def judged(model: Model, result: ImageResult) -> list[bool] | None:
    """What the model's judge says of the best image for each prompt; None where there is none."""
    verdicts = model.judge(result)
    if verdicts is None:
        return None
    return [row[best] for row, best in zip(verdicts, result.rewards.argmax(1).tolist())]
