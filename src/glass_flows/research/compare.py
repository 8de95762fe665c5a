"""Methods side by side: same model, same reward, same seeds, equal network evaluations.

Every method hands back the best of its N particles by the reward. An independent judge, which no
method sees, says whether the image is what was asked for: that is the primary measure. λ, scales
and the split of the evaluations into transitions are tuned for each method by the judge on other
seeds.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from ..errors import InvalidArgument, check_count, check_name
from ..guidance import Guidance
from ..jobs.models import Digits
from ..jobs.pictures import Strip, image_grid, make_folder, save_png
from ..measures import Measure, diversity, half_samples, mean, share
from ..plans import EulerMaruyama, Paper, Sampler
from ..progress import progress_bar
from ..steering import Beam, BestOf, Steering, Twist
from .digits import Array, Returned, draw_digits, frechet, real_features
from .recipe import Contender, Recipe, tune

__all__ = ["CompareReport", "MethodFigures", "chosen_methods", "compare", "methods"]

_STEPS = (4, 6, 10)  # evaluations per transition that are tried
_SCALES = (1.0, 2.0, 4.0, 8.0, 16.0)  # λ
_TUNING = 1_000_003  # added to the seed for tuning
_GLASS = "steering: GLASS"
_SHOWN = ("transitions", "steps", "scale", "twist", "guidance", "children")  # in the table
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


@dataclass(frozen=True)
class CompareReport:
    methods: tuple[MethodFigures, ...]
    real_diversity: float
    table: Path
    results: Path
    picture: Path


@dataclass(frozen=True)
class _Asked:
    """What is compared, and how much of it."""

    model: str
    rewards: list[str]
    evaluations: int
    particles: int
    populations: int
    tuning_populations: int
    seed: int

    def check(self) -> None:
        for name, least in (("populations", 4), ("tuning_populations", 2)):
            check_count(name, getattr(self, name), least=least)
        check_count("evaluations", self.evaluations)
        check_count("particles", self.particles)


def methods(evaluations: int, particles: int, sigma_data: float = 1.0) -> dict[str, Contender]:
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
    listed = [
        Contender("best-of-n: ODE", (Recipe(BestOf(particles), Sampler.ode(evaluations)),)),
        Contender("best-of-n: GLASS", tuple(Recipe(BestOf(particles), one) for one in glass)),
        Contender(
            "steering: Euler-Maruyama",
            tuple(
                Recipe(one, replace(sampler, rho=None, solver=EulerMaruyama()))
                for sampler, one in every
            ),
        ),
        Contender(
            "steering: DDPM",
            tuple(Recipe(one, Sampler(evaluations, 1, "ddpm")) for _, one in every),
        ),
        Contender(
            "steering: GLASS, Algorithm 1",
            tuple(Recipe(one, replace(sampler, solver=Paper())) for sampler, one in tilted),
        ),
        Contender(_GLASS, tuple(Recipe(one, sampler) for sampler, one in tilted)),
        Contender("  + reward guidance", follows=_GLASS, aids=tuple(map(guided, (0.25, 0.5, 1.0)))),
        Contender(
            "  + network guidance",  # whose backward passes are half of all
            tuple(
                Recipe(one, Sampler(k, m // 2, 0.4)).aided(guided(w, "network"))
                for k, m in splits
                for one in (Steering(particles, scale) for scale in _SCALES)
                for w in (0.5, 1.0)
            ),
        ),
        Contender(
            "  + twist",
            follows=_GLASS,
            aids=tuple(Twist(cap=cap, sigma_data=sigma_data) for cap in (0.75, 1.5, 3.0)),
        ),
        Contender(
            "beam: GLASS",
            tuple(
                Recipe(Beam(particles, children=w), sampler)
                for sampler in glass
                for w in (2, 4)
                if particles % w == 0
            )
            or (Recipe(Beam(particles, children=1), glass[0]),),
        ),
    ]
    return {one.title: one for one in listed}


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
) -> CompareReport:
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
    asked = _Asked(
        model.name, list(rewards), evaluations, particles, populations, tuning_populations, seed
    )
    asked.check()
    listed = chosen_methods(methods(evaluations, particles, model.sigma_data), only)
    bench = _Bench(model, rewards)
    folder = make_folder(out)
    found: list[MethodFigures] = []
    pictures: list[Strip] = []
    tuned: dict[str, Recipe] = {}
    baseline: _All | None = None
    draws = sum(one.trials + 1 for one in listed) * len(bench.labels)
    with progress_bar(draws, progress, "comparing") as advance:
        for one in listed:
            tuned[one.title], _ = tune(
                one.options(tuned),
                lambda recipe: bench.run(recipe, tuning_populations, seed + _TUNING, advance),
            )
            returned = bench.run(tuned[one.title], populations, seed, advance)
            baseline = baseline or returned
            figures = bench.figures(one.title, returned, baseline, tuned[one.title])
            found.append(figures)
            pictures.append(bench.row(one.title, returned))
            brief = figures.tuned.brief()
            announce(f"{one.title.strip()}: judge {figures.judge.value:.1%}, tuned {brief}")
            table, results = _write(folder, asked, found, bench.real_diversity)
    settings = json.dumps(asdict(asked))
    picture = save_png(image_grid(pictures), folder / "comparison.png", settings=settings)
    return CompareReport(tuple(found), bench.real_diversity, table, results, picture)


def chosen_methods(known: Mapping[str, Contender], only: Sequence[str]) -> list[Contender]:
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
    wanted |= {follows for name in wanted if (follows := known[name].follows)}
    return [known[name] for name in names if name in wanted]


@dataclass(frozen=True)
class _All:
    """What one method handed back, reward by reward."""

    parts: list[Returned]

    @property
    def verdicts(self) -> Array:
        return np.concatenate([one.verdicts for one in self.parts])

    @property
    def rewards(self) -> Array:
        return np.concatenate([one.rewards for one in self.parts])

    @property
    def merit(self) -> tuple[float, float]:
        return float(self.verdicts.mean()), float(self.rewards.mean())


class _Bench:
    """Draws the digits towards every reward, and judges what is returned."""

    def __init__(self, model: Digits, rewards: Sequence[str]) -> None:
        self.model = model
        any_ = Recipe(BestOf(), Sampler())
        self.labels = [
            label for text in rewards for label in model.labels(any_.job(model, reward=text))
        ]

    @cached_property
    def real(self) -> list[Array]:
        """Features of the real digits, for every reward."""
        return [real_features(self.model, label) for label in self.labels]

    @cached_property
    def real_diversity(self) -> float:
        return float(np.mean([diversity(real) for real in self.real]))

    def run(self, recipe: Recipe, populations: int, seed: int, advance: Callable[[], None]) -> _All:
        parts = []
        for label in self.labels:
            parts.append(draw_digits(self.model, recipe, label, populations, seed))
            advance()
        return _All(parts)

    def figures(self, title: str, returned: _All, baseline: _All, tuned: Recipe) -> MethodFigures:
        parts = returned.parts
        return MethodFigures(
            title,
            share(returned.verdicts),
            mean(returned.verdicts - baseline.verdicts),
            mean(returned.rewards),
            _average(frechet(one.features, real) for one, real in zip(parts, self.real)),
            _average(half_samples(one.features, diversity) for one in parts),
            forward=float(np.mean([one.forward for one in parts])),
            backward=float(np.mean([one.backward for one in parts])),
            tuned=tuned,
        )

    def row(self, title: str, returned: _All) -> Strip:
        """The images towards the first reward."""
        first = returned.parts[0]
        verdicts = [bool(verdict) for verdict in first.verdicts[:_PICTURES]]
        says = f"judge says {self.labels[0]}: {float(first.verdicts.mean()):.0%}"
        return Strip(f"{title.strip()}: {says}", first.images[:_PICTURES], verdicts)


def _average(estimates: Iterable[Measure]) -> Measure:
    """The mean of independent estimates."""
    listed = list(estimates)
    error = sum(one.error**2 for one in listed) ** 0.5
    return Measure(sum(one.value for one in listed) / len(listed), error / len(listed))


def _write(
    folder: Path, asked: _Asked, lines: Sequence[MethodFigures], real: float
) -> tuple[Path, Path]:
    """The table and the figures of the methods that are finished."""
    table, results = folder / "comparison.md", folder / "comparison.json"
    table.write_text(_table(lines, real, asked))
    told = [{**asdict(line), "tuned": line.tuned.brief()} for line in lines]
    payload = {"settings": asdict(asked), "methods": told, "real_diversity": real}
    results.write_text(json.dumps(payload, indent=1) + "\n")
    return table, results


def _table(lines: Sequence[MethodFigures], real: float, asked: _Asked) -> str:
    """The comparison in Markdown."""
    with_interval = "{:.1f} ({:.1f} to {:.1f})"

    def percent(estimate: Measure) -> str:
        return with_interval.format(*(100 * v for v in (estimate.value, *estimate.interval)))

    def plain(estimate: Measure) -> str:
        return f"{estimate.value:.2f} ± {estimate.error:.2f}"

    rows = [
        "| method | judge accepts, % (95 %) | more than best-of-N, points (95 %) | reward "
        "| Fréchet | diversity | passes per particle | tuned |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for line in lines:
        passes = f"{line.forward:g}" + (f" + {line.backward:g} back" if line.backward else "")
        brief = line.tuned.brief()
        tuned = ", ".join(f"{name} {brief[name]}" for name in _SHOWN if name in brief)
        rows.append(
            f"| {line.method.strip()} | {percent(line.judge)} | {percent(line.gain)} "
            f"| {plain(line.reward)} | {plain(line.frechet)} | {plain(line.diversity)} "
            f"| {passes} | {tuned} |"
        )
    notes = (
        f"{asked.populations} populations for each of {', '.join(asked.rewards)}; "
        f"{asked.particles} particles, {asked.evaluations} network passes per "
        f"particle, forward and backward together; seed {asked.seed}. Tuned by the judge on "
        f"other seeds, {asked.tuning_populations} populations for every candidate. ± is one "
        f"standard error. Real images have diversity {real:.2f}."
    )
    return "\n".join(rows) + "\n\n" + notes + "\n"
