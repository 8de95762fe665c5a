"""What our samplers make of a model distilled to few steps, measured on distilled digits.

    python -m benchmarks.few_steps [--quick] [--students out/few-steps] [--out docs/few_steps.md]

Distils the bundled digits network twice, to all times and to four, or takes the students that are
in the folder already (`glass-flows train digits-turbo`); samples from them and from their teacher
with K transitions of M evaluations at several ρ; and steers them. The tables go to stdout, and
between the markers of FILE.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.pages import write_between_marks
from glass_flows import Sampler, sample
from glass_flows.jobs.models import Digits, digits_denoiser, resolve
from glass_flows.measures import Measure, diversity, half_samples, share
from glass_flows.plans import Rho
from glass_flows.research.digits import draw_digits, frechet, judge_features, real_features
from glass_flows.research.distil_digits import distil_digits
from glass_flows.research.recipe import Recipe, Returned
from glass_flows.steering import BestOf, Method, Steering
from glass_flows.worlds.digits import FILES, IMAGE, NETWORK

COMMAND = "python -m benchmarks.few_steps"
RHOS: tuple[Rho, ...] = ("ode", "ddpm", 0.4, 0.0)
KS, MS = (1, 2, 4, 8), (1, 2, 4)
TEACHER = "teacher"
STUDENTS = {"student, all times": 16, "student, four times": 4}


@dataclass(frozen=True)
class Figures:
    """Of samples: Fréchet distance to real digits, judge's share of right ones, diversity."""

    frechet: Measure
    judge: Measure
    diversity: Measure

    def __str__(self) -> str:
        return (
            f"{self.frechet.value:.1f} ± {self.frechet.error:.1f}, "
            f"{100 * self.judge.value:.0f} %, {self.diversity.value:.1f}"
        )


def drawn(judge: Digits, folder: Path | None, sampler: Sampler, count: int) -> Figures:
    """Of `count` samples, each of a class of its own."""
    labels = torch.arange(count) % 10
    denoiser = digits_denoiser(folder=folder).condition(label=labels)
    images = sample(denoiser, (count, *IMAGE), sampler, seed=0, progress=False)
    features = judge_features(judge, images)
    with torch.no_grad():
        right = judge.classifiers["judge"](images).argmax(1) == labels
    return Figures(
        frechet(features, real_features(judge), rounds=30),
        share(right.double().numpy()),
        half_samples(features, diversity, rounds=2),
    )


def sampled(judge: Digits, folders: dict[str, Path | None], count: int) -> Iterator[str]:
    """A table for each model: K, M by ρ."""
    yield (
        f"Fréchet distance to the real digits ± its error, share that the judge reads as what was "
        f"asked for, diversity ({diversity(real_features(judge)):.1f} of the real ones); "
        f"{count:,} samples."
    )
    yield ""
    for name, folder in folders.items():
        yield f"**{name.capitalize()}**"
        yield ""
        yield "| K | M | evaluations | " + " | ".join(f"ρ = {rho}" for rho in RHOS) + " |"
        yield "|---" * (3 + len(RHOS)) + "|"
        for K in KS:
            for M in MS:
                rhos = RHOS[:1] if K == 1 else RHOS
                cells = [str(drawn(judge, folder, Sampler(K, M, rho), count)) for rho in rhos]
                cells += ["the same"] * (len(RHOS) - len(rhos))
                yield f"| {K} | {M} | {K * M} | " + " | ".join(cells) + " |"
        yield ""


def recipes() -> dict[str, list[tuple[str, Method, Sampler]]]:
    """What is steered, by model."""
    best, steered = BestOf(8), Steering(8, 4.0)
    student: list[tuple[str, Method, Sampler]] = [
        ("best of 8", best, Sampler(1, 1)),
        ("best of 8", best, Sampler(4, 1, 0.0)),
        *(("steering", steered, Sampler(4, 1, rho)) for rho in RHOS[1:]),
        ("steering", steered, Sampler(2, 2, 0.4)),
        *(("steering", steered, Sampler(K, M, 0.4)) for K, M in ((16, 1), (8, 2), (4, 4))),
    ]
    return {
        TEACHER: [
            ("best of 8", best, Sampler.ode(4)),
            ("best of 8", best, Sampler.ode(16)),
            ("steering", steered, Sampler(4, 1, "ddpm")),
            ("steering", steered, Sampler(4, 4, 0.4)),
        ],
        next(iter(STUDENTS)): student,
    }


def steered(models: dict[str, Digits], populations: int) -> Iterator[str]:
    """One table: the best by the reward of every population."""
    yield (
        "Steered towards each of the ten digits, from models that are told none, 8 particles, "
        f"λ = 4; {populations} populations for each digit."
    )
    yield ""
    yield (
        "| model | method | K | M | ρ | evaluations | judge accepts, % (95 %) | reward | Fréchet |"
    )
    yield "|---" * 9 + "|"
    judge = models[TEACHER]
    for name, listed in recipes().items():
        for title, method, sampler in listed:
            found = Returned.joined(
                [
                    draw_digits(models[name], Recipe(method, sampler), label, populations, 0)
                    for label in range(10)
                ]
            )
            accepted = share(found.verdicts)
            low, high = (100 * end for end in accepted.interval)
            apart = frechet(judge_features(judge, found.images), real_features(judge), rounds=30)
            rho = "" if sampler.transitions == 1 else f"{sampler.rho}"
            yield (
                f"| {name} | {title} | {sampler.transitions} | {sampler.steps} | {rho} | "
                f"{sampler.evaluations} | "
                f"{100 * accepted.value:.0f} ({low:.0f} to {high:.0f}) | "
                f"{np.mean(found.rewards):.2f} | {apart.value:.1f} ± {apart.error:.1f} |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="does it run, not what comes out")
    parser.add_argument("--students", type=Path, default=Path("out/few-steps"), metavar="FOLDER")
    parser.add_argument("--out", type=Path, metavar="FILE")
    given = parser.parse_args()
    torch.set_num_threads(1)
    count, populations = (200, 4) if given.quick else (4_000, 32)
    sizes = {"steps": 40, "trajectories": 500} if given.quick else {}
    folders: dict[str, Path | None] = {TEACHER: None}
    for name, times in STUDENTS.items():
        folders[name] = folder = given.students / f"{'quick-' * given.quick}times-{times}"
        if not (folder / FILES[NETWORK]).is_file():
            distil_digits(folder, times=times, **sizes)
    models = {
        name: resolve("digits" if folder is None else f"digits:{folder}")
        for name, folder in folders.items()
    }
    lines: list[str] = []
    parts: list[Callable[[], Iterator[str]]] = [
        lambda: sampled(models[TEACHER], folders, count),
        lambda: steered(models, populations),
    ]
    for part in parts:
        for line in part():
            print(line, flush=True)
            lines.append(line)
    if given.out is not None:
        write_between_marks(given.out, COMMAND, "\n".join(lines))


if __name__ == "__main__":
    main()
