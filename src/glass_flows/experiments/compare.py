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
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InvalidArgument, check_count, check_name
from ..guidance import Guidance
from ..models.digits import IMAGE, digits_images, digits_labels, load_digits_classifier
from ..progress import progress_bar
from ..rewards import ClassReward
from ..steering import SearchResult, Twist, beam, best_of, steer
from .align import DIGITS_STD, digits_denoiser, parse_class_reward
from .judging import Estimate, diversity, frechet_distance, half_samples, mean, share
from .pictures import Row, image_grid, make_folder, save_png

__all__ = ["CompareReport", "Figures", "Method", "compare", "methods", "parse_methods"]

Settings = dict[str, Any]
_STEPS = (4, 6, 10)  # evaluations per transition that are tried
_SCALES = (1.0, 2.0, 4.0, 8.0, 16.0)  # λ
_TUNING = 1_000_003  # added to the seed for tuning
_OURS = "FKS: GLASS, ours"


@dataclass(frozen=True)
class Method:
    """One way to spend the evaluations.

    Attributes
    ----------
    sampler : callable
        `steer`, `best_of` or `beam`, without the settings.
    candidates : tuple of dict
        Settings among which tuning chooses.
    follows : str or None
        Name of a method whose tuned settings come first; the candidates are added to them.
    """

    name: str
    sampler: Callable[..., SearchResult]
    candidates: tuple[Settings, ...]
    follows: str | None = None


@dataclass(frozen=True)
class Figures:
    """One line of the table; errors are standard errors over the runs.

    Attributes
    ----------
    judge : Estimate
        Share of the returned images that the judge accepts.
    gain : Estimate
        Difference of that share to best-of-N's, run by run.
    reward : Estimate
        Mean reward of the returned images.
    frechet : Estimate
        Squared Fréchet distance of the returned images to the real ones, in the judge's features,
        averaged over the rewards.
    diversity : Estimate
        Mean distance between two returned images, in the same features, averaged likewise.
    forward, backward : float
        Network passes per particle; together at most the evaluations that were allowed.
    tuned : dict
        The settings that tuning chose.
    """

    method: str
    judge: Estimate
    gain: Estimate
    reward: Estimate
    frechet: Estimate
    diversity: Estimate
    forward: float
    backward: float
    tuned: Settings


@dataclass(frozen=True)
class CompareReport:
    methods: tuple[Figures, ...]
    real_diversity: float
    table: Path
    results: Path
    picture: Path


def methods(evaluations: int, particles: int) -> dict[str, Method]:
    """The methods at `evaluations` network passes per particle, by name."""
    splits = [(evaluations // m, m) for m in _STEPS if evaluations % m == 0 and evaluations > m]
    if not splits:
        raise InvalidArgument(
            f"evaluations must be a multiple of one of {_STEPS} and larger than it, got "
            f"{evaluations!r}"
        )
    glass = [{"transitions": k, "steps": m, "rho": 0.4} for k, m in splits]
    tilted = [{**split, "scale": scale} for split in glass for scale in _SCALES]
    paper = [{**settings, "solver": "paper"} for settings in tilted]
    maruyama = [
        {**split, "rho": None, "solver": "euler-maruyama", "boundaries": split["steps"]}
        for split in tilted
    ]
    ddpm = [
        {
            "transitions": evaluations,
            "steps": 1,
            "rho": "ddpm",
            "boundaries": split["steps"],
            "scale": split["scale"],
        }
        for split in tilted
    ]
    half = [
        {**split, "steps": split["steps"] // 2, "guidance": guidance}
        for split in tilted
        for guidance in (_guided("network", 0.5), _guided("network", 1.0))
    ]
    listed = [
        Method(f"best of {particles}: ODE", best_of, ({"transitions": 1, "steps": evaluations},)),
        Method(f"best of {particles}: GLASS", best_of, tuple(glass)),
        Method("FKS: Euler-Maruyama", steer, tuple(maruyama)),
        Method("FKS: DDPM", steer, tuple(ddpm)),
        Method("FKS: GLASS, Algorithm 1", steer, tuple(paper)),
        Method(_OURS, steer, tuple(tilted)),
        Method(
            "  + reward guidance",
            steer,
            tuple({"guidance": _guided("reward", w)} for w in (0.25, 0.5, 1.0)),
            _OURS,
        ),
        Method("  + network guidance", steer, tuple(half)),
        Method(
            "  + twisted noise",
            steer,
            tuple({"twist": Twist(cap=cap, sigma_data=DIGITS_STD)} for cap in (0.75, 1.5, 3.0)),
            _OURS,
        ),
        Method(
            "beam search: GLASS",
            beam,
            tuple(
                {**split, "beams": particles // w, "children": w}
                for split in glass
                for w in (2, 4)
                if particles % w == 0
            )
            or ({**glass[0], "beams": particles, "children": 1},),
        ),
    ]
    return {method.name: method for method in listed}


def _guided(through: str, scale: float) -> Guidance:
    return Guidance(scale, through=through, sigma_data=DIGITS_STD)


def compare(
    out: str | os.PathLike[str],
    *,
    model: str = "digits",
    rewards: Sequence[str] = ("class:8",),
    evaluations: int = 24,
    particles: int = 8,
    runs: int = 256,
    tuning_runs: int = 96,
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
    runs, tuning_runs : int
        Populations per reward and method, for the figures and for every tuning candidate.
    only : sequence of str
        Parts of the names of the methods wanted; all by default. Best-of-N with the ODE, which the
        others are compared with, always runs.

    Results are written after every method: a run that stops keeps what was finished.
    """
    check_name("model", model, ("digits",))
    labels = [parse_class_reward(reward) for reward in rewards]
    for name, given, least in (("runs", runs, 4), ("tuning_runs", tuning_runs, 2)):
        check_count(name, given, least=least)
    check_count("evaluations", evaluations)
    check_count("particles", particles)
    chosen = parse_methods(methods(evaluations, particles), only)
    folder = make_folder(out)
    bench = _Bench(labels, particles, load_digits_classifier("judge"))
    settings = {
        "model": model, "rewards": list(rewards), "evaluations": evaluations,
        "particles": particles, "runs": runs, "tuning_runs": tuning_runs, "seed": seed,
    }  # fmt: skip
    found: list[Figures] = []
    pictures: list[Row] = []
    tuned: dict[str, Settings] = {}
    baseline: _Returned | None = None
    jobs = sum(len(method.candidates) * (len(method.candidates) > 1) + 1 for method in chosen)
    with progress_bar(jobs * len(labels), progress, "comparing") as advance:
        for method in chosen:
            first = tuned.get(method.follows or "", {})
            candidates = [{**first, **candidate} for candidate in method.candidates]
            best = candidates[0]
            if len(candidates) > 1:
                trials = [
                    bench.run(method.sampler, c, tuning_runs, seed + _TUNING, advance)
                    for c in candidates
                ]
                best = max(zip(candidates, trials), key=lambda pair: pair[1].merit)[0]
            tuned[method.name] = best
            returned = bench.run(method.sampler, best, runs, seed, advance)
            baseline = baseline or returned
            figures = bench.figures(method.name, returned, baseline, best)
            found.append(figures)
            name = method.name.strip()
            announce(f"{name}: judge {figures.judge.value:.1%}, tuned {_brief(best)}")
            shown = returned.images[0][:32]
            pictures.append(
                Row(
                    f"{name}: judge says {labels[0]}: {float(returned.verdicts[0].mean()):.0%}",
                    shown,
                    [bool(v) for v in returned.verdicts[0][:32]],
                )
            )
            real = bench.real_diversity()
            table = folder / "comparison.md"
            table.write_text(_table(found, real, settings))
            results = folder / "comparison.json"
            lines = [{**asdict(line), "tuned": _brief(line.tuned)} for line in found]
            payload = {"settings": settings, "methods": lines, "real_diversity": real}
            results.write_text(json.dumps(payload, indent=1) + "\n")
    picture = save_png(image_grid(pictures), folder / "comparison.png", settings=str(settings))
    return CompareReport(tuple(found), real, table, results, picture)


def parse_methods(known: Mapping[str, Method], only: Sequence[str]) -> list[Method]:
    """The methods whose names contain one of `only` (all if empty), the baseline, and what they
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
class _Returned:
    """What one method handed back, a list over the rewards; arrays are over the runs."""

    images: list[Tensor] = field(default_factory=list)
    rewards: list[np.ndarray[Any, Any]] = field(default_factory=list)
    verdicts: list[np.ndarray[Any, Any]] = field(default_factory=list)
    features: list[np.ndarray[Any, Any]] = field(default_factory=list)
    passes: list[tuple[float, float]] = field(default_factory=list)

    @property
    def merit(self) -> tuple[float, float]:
        """What tuning maximises: the judge, then the reward."""
        return float(np.concatenate(self.verdicts).mean()), float(
            np.concatenate(self.rewards).mean()
        )


class _Bench:
    """Runs samplers on the digits and judges what they return."""

    def __init__(self, labels: Sequence[int], particles: int, judge: Any) -> None:
        self.labels, self.particles, self.judge = labels, particles, judge
        self.denoiser = digits_denoiser()
        self.classifier = load_digits_classifier("reward")
        self.real = [self._features(digits_images()[digits_labels() == label]) for label in labels]

    def run(
        self,
        sampler: Callable[..., SearchResult],
        settings: Settings,
        runs: int,
        seed: int,
        advance: Callable[[], None],
    ) -> _Returned:
        returned = _Returned()
        size = {} if "beams" in settings else {"particles": self.particles}
        for label in self.labels:
            result = sampler(
                self.denoiser,
                ClassReward(self.classifier, label),
                shape=IMAGE,
                populations=runs,
                seed=seed + 1009 * label,
                progress=False,
                **size,
                **settings,
            )
            with torch.no_grad():
                verdicts = self.judge(result.best).argmax(1) == label
            particles = result.rewards.numel()
            returned.images.append(result.best)
            returned.rewards.append(result.rewards.amax(1).numpy())
            returned.verdicts.append(verdicts.numpy().astype(float))
            returned.features.append(self._features(result.best))
            returned.passes.append(
                (result.network_evaluations / particles, result.network_gradients / particles)
            )
            advance()
        return returned

    def figures(
        self, name: str, returned: _Returned, baseline: _Returned, tuned: Settings
    ) -> Figures:
        verdicts, before = np.concatenate(returned.verdicts), np.concatenate(baseline.verdicts)
        return Figures(
            name,
            share(verdicts),
            mean(verdicts - before),
            mean(np.concatenate(returned.rewards)),
            _average(
                half_samples(f, lambda s, r=real: frechet_distance(s, r))  # type: ignore[misc]
                for f, real in zip(returned.features, self.real)
            ),
            _average(half_samples(f, diversity) for f in returned.features),
            forward=float(np.mean([forward for forward, _ in returned.passes])),
            backward=float(np.mean([backward for _, backward in returned.passes])),
            tuned=tuned,
        )

    def real_diversity(self) -> float:
        return float(np.mean([diversity(real) for real in self.real]))

    @torch.no_grad()
    def _features(self, images: Tensor) -> np.ndarray[Any, Any]:
        return self.judge.features(images).double().numpy()


def _average(estimates: Iterable[Estimate]) -> Estimate:
    """The mean of independent estimates."""
    listed = list(estimates)
    error = sum(one.error**2 for one in listed) ** 0.5
    return Estimate(sum(one.value for one in listed) / len(listed), error / len(listed))


def _brief(settings: Settings) -> Settings:
    """Settings as plain numbers and names."""
    brief = dict(settings)
    if isinstance(twist := brief.get("twist"), Twist):
        brief["twist"] = f"{twist.scale:g}, cap {twist.cap:g}"
    if isinstance(guidance := brief.get("guidance"), Guidance):
        brief["guidance"] = f"{guidance.through}:{guidance.scale}"
    return brief


def _table(lines: Sequence[Figures], real: float, settings: Settings) -> str:
    """The comparison in Markdown."""
    with_interval = "{:.1f} ({:.1f} to {:.1f})"

    def percent(estimate: Estimate) -> str:
        return with_interval.format(*(100 * v for v in (estimate.value, *estimate.interval)))

    def plain(estimate: Estimate) -> str:
        return f"{estimate.value:.2f} ± {estimate.error:.2f}"

    rows = [
        "| method | judge accepts, % (95 %) | more than best-of-N, points (95 %) | reward "
        "| Fréchet | diversity | passes per particle | tuned |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for line in lines:
        passes = f"{line.forward:g}" + (f" + {line.backward:g} back" if line.backward else "")
        tuned = ", ".join(
            f"{key} {value}"
            for key, value in _brief(line.tuned).items()
            if key in ("transitions", "steps", "scale", "twist", "guidance", "beams", "children")
        )
        rows.append(
            f"| {line.method.strip()} | {percent(line.judge)} | {percent(line.gain)} "
            f"| {plain(line.reward)} | {plain(line.frechet)} | {plain(line.diversity)} "
            f"| {passes} | {tuned} |"
        )
    notes = (
        f"{settings['runs']} runs for each of {', '.join(settings['rewards'])}; "
        f"{settings['particles']} particles, {settings['evaluations']} network passes per "
        f"particle, forward and backward together; seed {settings['seed']}. Tuned by the judge on "
        f"other seeds, {settings['tuning_runs']} runs for every candidate. ± is one standard "
        f"error. Real images have diversity {real:.2f}."
    )
    return "\n".join(rows) + "\n\n" + notes + "\n"
