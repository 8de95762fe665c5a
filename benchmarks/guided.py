"""How accurate the default solver is under classifier-free guidance.

    python -m benchmarks.guided [--quick] [--out docs/accuracy.md]
    python -m benchmarks.guided --splits [--quick] [--out docs/accuracy.md]

The measurement of :mod:`benchmarks.accuracy`, on models guided by D_u + w (D_c - D_u): the bundled
digits network, the bundled Shapes pipeline, and mixtures on the digits whose D_c knows the class
and whose D_u does not, both exact. Two sets of transitions: the ten of `benchmarks.accuracy`, long
ones among them, and `USUAL`, those of samplers of five to eight transitions.

With `--splits`: what evaluations per transition are worth to somebody who steers a guided model.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

import glass_flows
from benchmarks.accuracy import (
    CASES,
    LINEAR,
    PAIRS,
    PAPER,
    Case,
    Errors,
    Problem,
    Report,
    case_table,
    ddpm,
    error_table,
    geometric_mean,
    measure,
)
from glass_flows.denoisers import BaseDenoiser
from glass_flows.diffusers.families.flux import Flux
from glass_flows.diffusers.parts import rounds_its_clock
from glass_flows.diffusers.scheduler import config_of
from glass_flows.diffusers.schedules import Schedule
from glass_flows.jobs.models import Digits, Shapes, resolve
from glass_flows.measures import frechet_distance, mean
from glass_flows.research.digits import judge_features, real_features
from glass_flows.research.recipe import Recipe, judged
from glass_flows.steering import Steering
from glass_flows.steering.loop import Watch
from glass_flows.worlds import load_digits_network
from glass_flows.worlds.digits import NULL_CLASS, digits_images, digits_labels
from glass_flows.worlds.shapes import prompts
from glass_flows.worlds.shapes.pipeline import CALL, load_pipeline

USUAL = (
    Case(0.05, 0.2, 0.4),
    *(Case(k / 8, (k + 1) / 8, 0.4) for k in range(1, 7)),
    Case(0.6, 0.8, 0.4),
    ddpm(0.3, 0.5),
    Case(0.5, 0.7, 0.9),
    Case(0.8, 1.0, 0.4),
    Case(0.6, 1.0, 0.0),
)
"""The twelve transitions: as samplers of five to eight have them, and one half the way long."""


OURS = (2, 3, 4, 5, 6, 7, 8, 10)


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    samples: int = 48
    shapes: int = 8
    scales: tuple[float, ...] = (1.0, 3.0, 5.0, 7.0)
    shapes_scales: tuple[float, ...] = (5.0,)
    reference: int = 24
    shapes_reference: int = 20


QUICK = Sizes(6, 1, (1.0, 5.0), (5.0,), 16, 6)


def problem_of(name: str, denoiser: BaseDenoiser, data: Tensor) -> Problem:
    def mean(y: Tensor, amplitude: float) -> Tensor:
        t = amplitude / (1.0 + amplitude)
        return denoiser((1.0 - t) * y, t)

    return Problem(name, denoiser, mean, lambda batch: data)


def chosen(count: int) -> tuple[Tensor, Tensor]:
    """Images and labels."""
    rows = torch.randperm(len(digits_labels()), generator=torch.Generator().manual_seed(1))[:count]
    return digits_images().double()[rows], digits_labels()[rows]


def network_problem(scale: float, count: int) -> Problem:
    images, label = chosen(count)
    denoiser = glass_flows.Denoiser(
        load_digits_network().double(),
        LINEAR,
        prediction="velocity",
        conditioning={"label": label},
        unconditional={"label": torch.tensor([NULL_CLASS])},
        guidance_scale=scale,
    )
    return problem_of(f"digits network, w = {scale:g}", denoiser, images)


def guided_mixture(scale: float, std: float, labels: Tensor) -> glass_flows.Denoiser:
    """Gaussians of width `std` on the digits: D_c is exact for the class, D_u for all of them."""
    images, of = digits_images().double(), digits_labels()
    means, halves = images.flatten(1), 0.5 * images.flatten(1).square().sum(1)

    def network(x: Tensor, times: Tensor, label: Tensor) -> Tensor:
        t, rows = times[0].item(), x.flatten(1)
        power = (t * std) ** 2 + (1.0 - t) ** 2
        logits = (t * rows @ means.T - t**2 * halves) / power
        shut = (label[:, None] >= 0) & (of != label[:, None])
        centre = torch.softmax(logits.masked_fill(shut, -torch.inf), 1) @ means
        return (((1.0 - t) ** 2 * centre + t * std**2 * rows) / power).view(x.shape)

    return glass_flows.Denoiser(
        network,
        LINEAR,
        prediction="sample",
        conditioning={"label": labels},
        unconditional={"label": torch.tensor([-1])},
        guidance_scale=scale,
        dtype=torch.float64,
    )


def mixture_problem(scale: float, count: int, std: float = 0.15) -> Problem:
    images, labels = chosen(count)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(2)).double()
    name = f"digits mixture, w = {scale:g}"
    return problem_of(name, guided_mixture(scale, std, labels), images + std * noise)


def shapes_problem(scale: float, count: int) -> Problem:
    """The data are samples of the pipeline's own, without guidance."""
    pipe = load_pipeline()
    schedule = Schedule.of(config_of(pipe.scheduler), rounds_its_clock(pipe))
    sentences = [str(prompt) for prompt in prompts("test", count)]

    def denoiser(w: float) -> glass_flows.Denoiser:
        return Flux(pipe, **{**CALL, "true_cfg_scale": w}).denoiser(sentences, schedule)

    plain = denoiser(1.0 + 1e-6)  # at 1 the pipeline does not know its negative prompt
    noise = torch.randn(count, 16, 32, generator=torch.Generator().manual_seed(3))
    data = glass_flows.sample(plain, noise.double(), glass_flows.Sampler.ode(32), progress=False)
    return problem_of(f"Shapes pipeline, w = {scale:g}", denoiser(scale), data)


def smallest_rows(report: Report, results: dict[str, Errors]) -> None:
    """The fewest of our evaluations whose error on the twelve is at most Algorithm 1's."""
    rows = []
    for name, errors in results.items():
        usual = of_the_twelve(errors)
        found = []
        for paper in PAPER:
            bound = usual.mean("paper", paper)
            enough = [M for M in OURS if usual.mean("default", M) <= bound]
            found.append(str(min(enough)) if enough else f"more than {max(OURS)}")
        rows.append([name, *found])
    report.table(["model", *(f"Alg. 1, {paper}" for paper in PAPER)], rows)


def of_the_twelve(errors: Errors) -> Errors:
    """Of the twelve only."""
    single = {key: held[: len(USUAL)] for key, held in errors.single.items()}
    return replace(errors, cases=USUAL, single=single)


def ratio_rows(report: Report, results: dict[str, Errors], split: int) -> None:
    """Our error / Algorithm 1's, geometric mean over the twelve and over the ten."""
    rows = []
    for name, errors in results.items():
        for ours, paper in PAIRS.items():
            found, medians = errors.ratios(ours), errors.medians(ours)
            sets = (found[:split], medians[:split], found[split:], medians[split:])
            shown = [f"{geometric_mean(one):.2f}" if one else "" for one in sets]
            worst = found.index(max(found))
            where = f"{found[worst]:.2f} ± {errors.noise(ours, worst):.2f}, {errors.cases[worst]}"
            rows.append([name, f"{ours} : {paper}", *shown, where])
    header = ["model", "evaluations", "the twelve", "by medians", "the ten", "by medians", "worst"]
    report.table(header, rows)


SPLITS = ((24, 1), (12, 2), (8, 3), (6, 4), (5, 5), (4, 6), (6, 5), (6, 6))
"""K and M: of 24 evaluations or one more, then the default K with larger M."""


def ink(z: Tensor) -> Tensor:
    """How much of a digit is black: a reward that the class does not settle. (B, ...) to (B,)."""
    return 8 * z.flatten(1).mean(1)


def digits_split(scale: float, K: int, M: int, populations: int) -> list[str]:
    """Digits of each class steered to more ink: the best of 8 by the reward, and what they are."""
    model = cast(Digits, resolve("digits"))
    rewards, distances = [], []
    for label in range(10):
        denoiser = glass_flows.Denoiser(
            load_digits_network(),
            LINEAR,
            prediction="velocity",
            conditioning={"label": torch.tensor([label])},
            unconditional={"label": torch.tensor([NULL_CLASS])},
            guidance_scale=scale,
        )
        result = glass_flows.steer(
            denoiser, ink, Steering(8, 5.0), glass_flows.Sampler(K, M, 0.4), shape=(1, 8, 8),
            populations=populations, seed=label, progress=False,
        )  # fmt: skip
        rewards.append(result.rewards.amax(1))
        features = judge_features(model, result.best)
        distances.append(frechet_distance(features, real_features(model, label)))
    told = mean(torch.cat(rewards).double().numpy())
    return [f"{told.value:.3f} ± {told.error:.3f}", f"{np.mean(distances):.0f}"]


def shapes_split(scale: float, K: int, M: int, count: int) -> list[str]:
    """Held-out prompts steered by the CLIP, four particles each: its reward, and the judge."""
    model = cast(Shapes, resolve("shapes"))
    asked, rewards, verdicts = [str(prompt) for prompt in prompts("test", count)], [], []
    for i in range(0, count, 10):
        recipe = Recipe(Steering(4, 0.5), glass_flows.Sampler(K, M, 0.4))
        call = {"true_cfg_scale": scale}
        job = recipe.job(model, prompts=tuple(asked[i : i + 10]), seed=i, call=call)
        result = model.run(job, Watch(progress=False))
        rewards += result.rewards.amax(1).tolist()
        verdicts += judged(model, result) or []
    told, share = mean(np.array(rewards)), mean(np.array(verdicts, float))
    return [
        f"{told.value:.2f} ± {told.error:.2f}",
        f"{100 * share.value:.0f} ± {100 * share.error:.0f}",
    ]


def splits(report: Report, quick: bool) -> None:
    populations, count = (2, 4) if quick else (60, 60)
    rows = []
    for K, M in SPLITS:
        row = [f"{K} x {M}", str(K * M)]
        for scale in (5.0, 7.0):
            row += digits_split(scale, K, M, populations)
        rows.append([*row, *shapes_split(5.0, K, M, count)])
        report.progress(row[0])
    report.table(
        ["K x M", "evaluations", "digits, w = 5: ink", "distance", "w = 7: ink", "distance",
         "Shapes, w = 5: CLIP", "judge, %"],
        rows,
    )  # fmt: skip
    report.text(
        "What is returned of 8 digits (4 pictures of Shapes) steered under guidance, best by the "
        f"reward: {10 * populations} populations of digits, reward ink, λ = 5, squared Fréchet "
        f"distance to the real ones of the class; {count} held-out prompts, λ = 0.5. ± is one "
        "standard error."
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="Accuracy under classifier-free guidance.")
    parser.add_argument("--quick", action="store_true", help="few samples, under a minute")
    parser.add_argument("--splits", action="store_true", help="what M is worth when steering")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the report here")
    given = parser.parse_args()
    command = "python -m benchmarks.guided" + (" --splits" if given.splits else "")
    report = Report(command)
    (splits if given.splits else accuracy)(report, given.quick)
    if given.out:
        report.write(given.out)
    report.progress("done")
    return 1 if report.failed else 0


def accuracy(report: Report, quick: bool) -> None:
    """Single transitions against Algorithm 1."""
    sizes = QUICK if quick else Sizes()
    results: dict[str, Errors] = {}
    cases = USUAL + (() if quick else CASES)
    with torch.inference_mode():
        for make in (network_problem, mixture_problem):
            for scale in sizes.scales:
                problem = make(scale, sizes.samples)
                results[problem.name] = measure(
                    problem, sizes.reference, report, cases=cases, ours=OURS
                )
        for scale in sizes.shapes_scales:
            problem = shapes_problem(scale, sizes.shapes)
            found = measure(problem, sizes.shapes_reference, report, cases=USUAL, ours=OURS)
            results[problem.name] = found
    report.text(
        f"{sizes.samples} samples per transition, {sizes.shapes} on Shapes; references of "
        f"{sizes.reference} Runge-Kutta steps, {sizes.shapes_reference} on Shapes. Errors: "
        "geometric mean over all transitions of the model.",
    )
    error_table(report, results)
    ratio_rows(report, results, len(USUAL))
    report.text("The fewest evaluations as accurate on the twelve as Algorithm 1:")
    smallest_rows(report, results)
    report.text("On each of the twelve, for 3 : 10 / 4 : 20 / 6 : 40 evaluations:")
    case_table(report, {n: replace(e, cases=USUAL) for n, e in results.items() if "w = 1" not in n})
    for name, errors in results.items():
        for ours, paper in PAIRS.items():
            # What is aimed at: at w = 7 for 4 and 6 evaluations of the network.
            if name.endswith("w = 5") or (name == "digits network, w = 7" and ours > 3):
                ratio = geometric_mean(errors.ratios(ours)[: len(USUAL)])
                what = f"{name}: {ours} evaluations against Algorithm 1's {paper}, the twelve"
                report.check(ratio <= 1.0, f"{what}: ratio {ratio:.2f} ≤ 1")


if __name__ == "__main__":
    sys.exit(main())
