"""Methods side by side: same model, same reward, same seeds, equal network evaluations.

Every method hands back the best of its N particles by the reward. An independent judge, which no
method sees, says whether the image is what was asked for: that is the primary measure. λ, scales
and the split of the evaluations into transitions are tuned for each method by the judge on other
seeds.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np

from ..errors import InvalidArgument, check_count, check_name
from ..folders import alone_in_out
from ..guidance import Guidance
from ..jobs.models import Digits
from ..jobs.pictures import Strip, image_grid, make_folder, save_png
from ..measures import Measure, diversity, half_samples, mean, share
from ..plans import EulerMaruyama, Paper, Sampler
from ..progress import progress_bar
from ..steering import Beam, BestOf, Refine, Steering, Twist
from .digits import draw_digits, frechet, judge_features, real_features
from .recipe import Array, Entry, Methods, Recipe, Report, Returned, contest, trials, write_contest

_STEPS = (4, 6, 10)  # evaluations per transition that are tried
_SCALES = (1.0, 2.0, 4.0, 8.0, 16.0)  # λ
_MOVES = ((4, 2), (6, 3))  # evaluations of the start and of a move of refinement
_TUNING = 1_000_003  # added to the seed for tuning
_GLASS = "steering: GLASS"
_PICTURES = 32


@dataclass(frozen=True)
class MethodFigures:
    """One line of the table; errors are standard errors over the populations.

    Attributes
    ----------
    judge : Measure
        Share of the returned images that the judge accepts.
    gain : Measure
        Difference of that share to best-of-N's, population by population.
    reward : Measure
        Mean reward of the returned images.
    frechet : Measure
        Squared Fréchet distance of the returned images to the real ones, in the judge's features,
        averaged over the rewards.
    diversity : Measure
        Mean distance between two returned images, in the same features, averaged likewise.
    forward, backward : float
        Network passes per particle; together at most the evaluations that were allowed.
    tuned : Recipe
        What tuning chose.
    """

    method: str
    judge: Measure
    gain: Measure
    reward: Measure
    frechet: Measure
    diversity: Measure
    forward: float
    backward: float
    tuned: Recipe


def methods(evaluations: int, particles: int, sigma_data: float = 1.0) -> Methods:
    """The methods at `evaluations` network passes per particle, by title."""
    splits = [(evaluations // m, m) for m in _STEPS if evaluations % m == 0 and evaluations > m]
    if not splits:
        raise InvalidArgument(
            f"evaluations must be a multiple of one of {_STEPS} and larger than it, got "
            f"{evaluations!r}"
        )
    glass = [Sampler(k, m, 0.4) for k, m in splits]
    tilted = [(sampler, Steering(particles, scale)) for sampler in glass for scale in _SCALES]
    guided = partial(Guidance, sigma_data=sigma_data)
    # The SDEs, whose transitions are of one evaluation, stop where GLASS does.
    every = [(sampler, replace(one, boundaries=sampler.steps)) for sampler, one in tilted]
    return {
        "best-of-n: ODE": [Recipe(BestOf(particles), Sampler.ode(evaluations))],
        "best-of-n: GLASS": [Recipe(BestOf(particles), sampler) for sampler in glass],
        "steering: Euler-Maruyama": [
            Recipe(method, replace(sampler, rho=None, solver=EulerMaruyama()))
            for sampler, method in every
        ],
        "steering: DDPM": [Recipe(method, Sampler(evaluations, 1, "ddpm")) for _, method in every],
        "steering: DDPM, a look at each": [
            Recipe(Steering(particles, scale), Sampler(evaluations, 1, "ddpm")) for scale in _SCALES
        ],
        "steering: GLASS, Algorithm 1": [
            Recipe(method, replace(sampler, solver=Paper())) for sampler, method in tilted
        ],
        _GLASS: [Recipe(method, sampler) for sampler, method in tilted],
        "  + reward guidance": [guided(w) for w in (0.25, 0.5, 1.0)],
        "  + network guidance": [  # whose backward passes are half of all
            Recipe(
                Steering(particles, scale, guidance=guided(w, "network")), Sampler(k, m // 2, 0.4)
            )
            for k, m in splits
            for scale in _SCALES
            for w in (0.5, 1.0)
        ],
        "  + twist": [Twist(cap=cap, sigma_data=sigma_data) for cap in (0.75, 1.5, 3.0)],
        "beam: GLASS": [
            Recipe(Beam(particles, children=children), sampler)
            for sampler in glass
            for children in (2, 4)
            if particles % children == 0
        ]
        or [Recipe(Beam(particles, children=1), glass[0])],
        "refinement": list(_refinements(evaluations, particles, 0.5)),
        "refinement: no exchange": list(_refinements(evaluations, particles, 0.0)),
    }


def _refinements(evaluations: int, particles: int, exchanged: float) -> Iterator[Recipe]:
    """A short ODE, and moves of two evaluations or three."""
    for begin, each in _MOVES:
        moves = max(0, evaluations - begin) // each
        for scale in _SCALES[-2:]:
            method = Refine(particles, scale, moves=moves, move_steps=each, ess_threshold=exchanged)
            yield Recipe(method, Sampler.ode(evaluations - moves * each))


@alone_in_out
def compare(
    out: str | os.PathLike[str],
    *,
    model: Digits,
    rewards: Sequence[str] = ("class:8",),
    evaluations: int = 24,
    particles: int = 8,
    populations: int = 256,
    tuning_populations: int = 96,
    only: Sequence[str] = (),
    seed: int = 0,
    progress: bool | None = None,
    announce: Callable[[str], None] = lambda text: None,
) -> Report[MethodFigures]:
    """Tune and run every method, and write the table, the figures and a picture into `out`.

    Parameters
    ----------
    rewards : sequence of str
        "class:N"; the figures pool them.
    evaluations : int
        Network passes per particle, forward and backward together.
    populations, tuning_populations : int
        Per reward and method, for the figures and for every tuning candidate.
    only : sequence of str
        Parts of the titles of the methods wanted; all by default. Best-of-N with the ODE, which the
        others are compared with, always runs.

    Results are written after every method: one that stops keeps what was finished.
    """
    settings: dict[str, Any] = {
        "model": model.name,
        "rewards": list(rewards),
        "evaluations": evaluations,
        "particles": particles,
        "populations": populations,
        "tuning_populations": tuning_populations,
        "seed": seed,
    }
    counts = {"populations": 4, "tuning_populations": 2, "evaluations": 1, "particles": 1}
    for name, least in counts.items():
        check_count(name, settings[name], least)
    listed = chosen_methods(methods(evaluations, particles, model.sigma_data), only)
    bench = _Bench(model, rewards)
    stem = make_folder(out) / "comparison"
    if stem.with_suffix(".json").exists():
        announce("there is a comparison in the folder: all is drawn again, and it is replaced")
    found: list[MethodFigures] = []
    pictures: list[Strip] = []
    baseline: Returned | None = None
    draws = (trials(listed) + len(listed)) * len(bench.labels)
    with progress_bar(draws, progress, "comparing") as advance:

        def draw(recipe: Recipe, tuning: bool) -> Returned:
            if tuning:
                return bench.run(recipe, tuning_populations, seed + _TUNING, advance)
            return bench.run(recipe, populations, seed, advance)

        for one in contest(listed, _GLASS, draw):
            baseline = baseline or one.returned
            found.append(bench.figures(one, baseline))
            pictures.append(bench.row(one))
            judge, brief = found[-1].judge.value, one.tuned.brief()
            announce(f"{one.title.strip()}: judge {judge:.1%}, tuned {brief}")
            table, results = write_contest(
                stem, settings, found, real_diversity=bench.real_diversity
            )
    file = stem.with_suffix(".png")
    picture = save_png(image_grid(pictures), file, settings=json.dumps(settings))
    return Report(tuple(found), table, results, picture)


def chosen_methods(known: Methods, only: Sequence[str]) -> Methods:
    """The methods whose titles contain one of `only` (all if empty), the baseline, and what they
    follow."""
    names = list(known)
    for part in only:
        if not any(part.lower() in name.lower() for name in names):
            check_name("method", part, [name.strip() for name in names])
    wanted = {
        name for name in names if not only or any(part.lower() in name.lower() for part in only)
    }
    wanted |= {names[0]}
    if any(not isinstance(one, Recipe) for name in wanted for one in known[name]):
        wanted |= {_GLASS}
    return {name: known[name] for name in names if name in wanted}


class _Bench:
    """Draws the digits towards every reward, and judges what is returned."""

    def __init__(self, model: Digits, rewards: Sequence[str]) -> None:
        self.model = model
        for text in rewards:  # the judge is for the verdicts
            check_name("reward", text.partition(":")[0], ("class",))
        any_ = Recipe(BestOf(), Sampler())
        self.labels = [
            label for text in rewards for label in model.labels(any_.job(model, reward=text))
        ]

    @property
    def real(self) -> list[Array]:
        """Features of the real digits, for every reward."""
        return [real_features(self.model, label) for label in self.labels]

    @cached_property
    def real_diversity(self) -> float:
        return float(np.mean([diversity(real) for real in self.real]))

    def run(
        self, recipe: Recipe, populations: int, seed: int, advance: Callable[[], None]
    ) -> Returned:
        parts = []
        for label in self.labels:
            parts.append(draw_digits(self.model, recipe, label, populations, seed))
            advance()
        return Returned.joined(parts)

    def figures(self, one: Entry, baseline: Returned) -> MethodFigures:
        returned = one.returned
        parts = [judge_features(self.model, z) for z in returned.images.chunk(len(self.labels))]
        particles = len(returned.rewards) * one.tuned.method.particles
        return MethodFigures(
            one.title,
            share(returned.verdicts),
            mean(returned.verdicts - baseline.verdicts),
            mean(returned.rewards),
            _average(frechet(part, real) for part, real in zip(parts, self.real)),
            _average(half_samples(part, diversity) for part in parts),
            forward=returned.evaluations / particles,
            backward=returned.gradients / particles,
            tuned=one.tuned,
        )

    def row(self, one: Entry) -> Strip:
        """The images towards the first reward."""
        verdicts = one.returned.verdicts[: len(one.returned.verdicts) // len(self.labels)]
        says = f"judge says {self.labels[0]}: {float(verdicts.mean()):.0%}"
        shown = [bool(verdict) for verdict in verdicts[:_PICTURES]]
        return Strip(f"{one.title.strip()}: {says}", one.returned.images[: len(shown)], shown)


def _average(estimates: Iterable[Measure]) -> Measure:
    """The mean of independent estimates."""
    listed = list(estimates)
    error = sum(one.error**2 for one in listed) ** 0.5
    return Measure(sum(one.value for one in listed) / len(listed), error / len(listed))
