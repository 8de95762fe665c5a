"""Methods side by side: each is tuned on one part, run on another, and is a line of the table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .recipe import Aid, Recipe, Returned
from .writing import write_json, write_markdown

__all__ = ["Contender", "Entry", "Trials", "contest", "write_contest"]

Trials = list[tuple[Recipe, Returned]]


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


@dataclass(frozen=True)
class Entry:
    """A contender with its tuned recipe, what that returned, and all that tuning tried."""

    title: str
    tuned: Recipe
    returned: Returned
    trials: Trials


def contest(
    contenders: Iterable[Contender], draw: Callable[[Recipe, bool], Returned]
) -> Iterator[Entry]:
    """Tune and run one after the other; the best is the first of the highest merit.

    ``draw(recipe, tuning)`` runs a recipe on the part for tuning, or on the one for the figures.
    """
    tuned: dict[str, Recipe] = {}
    for one in contenders:
        first, *others = one.options(tuned)
        tried = [(recipe, draw(recipe, True)) for recipe in (first, *others) if others]
        tuned[one.title] = max(tried, key=lambda trial: trial[1].merit)[0] if tried else first
        yield Entry(one.title, tuned[one.title], draw(tuned[one.title], False), tried)


def write_contest(
    stem: Path, settings: Mapping[str, Any], lines: Sequence[Any], **rest: object
) -> tuple[Path, Path]:
    """STEM.md, the table, and STEM.json, all figures, of the methods that are finished."""
    told = [{**asdict(line), "tuned": line.tuned.brief()} for line in lines]
    table = write_markdown(stem.with_suffix(".md"), stem.name, lines=lines, **settings, **rest)
    payload = {"settings": settings, "methods": told, **rest}
    return table, write_json(stem.with_suffix(".json"), payload)
