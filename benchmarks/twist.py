"""What twisted noise is worth, and that it does no harm.

    python -m benchmarks.twist [--quick] [--out docs/twisted-noise.md]

Checks the claims of `docs/twisted-noise.md`, one PASS or FAIL line each, and exits with 1 if one
fails. The report goes to stdout as Markdown (and into FILE, between the two marker comments if it
has them), progress to stderr.

Populations of 8 particles, 6 transitions of 4 evaluations, ρ = 0.4, difference potential on r(D),
systematic resampling when ESS falls under one half, λ = 1; σ_data = 0.7. The same seeds with and
without the twist, so that both start from the same noise.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from benchmarks.pages import write_between_marks
from glass_flows import Sampler, Steering, Twist, steer
from glass_flows.denoisers import DenoiserLike
from glass_flows.jobs.models import Digits, digits_denoiser
from glass_flows.paths import Linear
from glass_flows.plans import Default
from glass_flows.rewards import ClassReward, FunctionReward, Reward
from glass_flows.worlds import digits_mixture
from glass_flows.worlds.digits import (
    IMAGE,
    digits_images,
    digits_labels,
    load_digits_classifier,
)

COMMAND = "python -m benchmarks.twist"
SIGMA_DATA = Digits.sigma_data
OFF = Twist(0.0)
FIXED = Twist(cap=1.5, sigma_data=SIGMA_DATA, adaptive=False)
DEFAULT = Twist(sigma_data=SIGMA_DATA)
SAMPLER = Sampler(6, 4, 0.4, solver=Default(sigma_data=SIGMA_DATA))
TARGET, HARMLESS = 0.70, 1.10
BATCH = 512  # populations at a time


@dataclass(frozen=True)
class Line:
    """One setting over all populations; arrays are over the populations."""

    name: str
    log_evidence: np.ndarray
    best: np.ndarray
    smallest_ess: float
    share: float
    evaluations: int

    @property
    def evidence(self) -> tuple[float, float]:
        values = np.exp(self.log_evidence)
        return values.mean(), values.std(ddof=1) / len(values) ** 0.5


def logistic_reward(label: int = 8) -> ClassReward:
    """log p(label) under a logistic regression with C = 0.05 on pixels x/8 - 1."""
    images = digits_images().flatten(1).double().numpy()
    fitted = LogisticRegression(C=0.05, max_iter=2000).fit(images, digits_labels().numpy())
    weight, bias = torch.from_numpy(fitted.coef_), torch.from_numpy(fitted.intercept_)
    return ClassReward(lambda z: z.flatten(1) @ weight.T.to(z) + bias.to(z), label)


def wiggling(amplitude: float, also: Callable[[Tensor], Tensor] | None = None) -> FunctionReward:
    """A cosine of wavelength 0.16 along one direction: a step away its gradient says nothing."""
    direction = torch.randn(64, generator=torch.Generator().manual_seed(0)) / 8

    def reward(z: Tensor) -> Tensor:
        wave = amplitude * torch.cos(40.0 * z.flatten(1) @ direction.to(z))
        return wave if also is None else wave + also(z)

    return FunctionReward(reward, "wiggle")


def measure(
    name: str, twist: Twist, *, denoiser: DenoiserLike, reward: Reward, populations: int
) -> Line:
    parts = []
    for first in range(0, populations, BATCH):
        parts.append(
            steer(
                denoiser,
                reward,
                Steering(8, 1.0, twist=twist),
                SAMPLER,
                shape=IMAGE,
                populations=min(BATCH, populations - first),
                seed=first,
                progress=False,
            )
        )
    shares = torch.cat([part.twist_shares for part in parts], 1)[1:]
    return Line(
        name,
        torch.cat([part.log_evidence for part in parts]).numpy(),
        torch.cat([part.rewards.amax(1) for part in parts]).numpy(),
        float(torch.cat([part.ess for part in parts], 1).mean(1).min()),
        float(shares.mean()),
        sum(part.network_evaluations for part in parts),
    )


def variance_ratio(line: Line, plain: Line, rounds: int = 400) -> tuple[float, float]:
    """Ratio of the log-evidence's variances, and its bootstrap standard error (paired)."""
    rng, n = np.random.default_rng(0), len(plain.log_evidence)

    def ratio(chosen: np.ndarray) -> float:
        return line.log_evidence[chosen].var() / plain.log_evidence[chosen].var()

    drawn = [ratio(rng.integers(0, n, n)) for _ in range(rounds)]
    return ratio(np.arange(n)), float(np.std(drawn, ddof=1))


class Report:
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.failed = 0
        self.start = time.perf_counter()

    def text(self, *lines: str) -> None:
        self.lines.extend(lines)
        print(*lines, sep="\n", flush=True)

    def check(self, passed: bool, claim: str) -> None:
        self.failed += not passed
        self.text(f"- {'PASS' if passed else 'FAIL'}: {claim}")

    def progress(self, what: str) -> None:
        print(f"[{time.perf_counter() - self.start:5.0f}s] {what}", file=sys.stderr, flush=True)

    def write(self, file: Path) -> None:
        write_between_marks(file, COMMAND, "\n".join(self.lines))


def section(
    report: Report,
    title: str,
    run: Callable[[str, Twist], Line],
    truth: float | None,
) -> dict[str, tuple[Line, float, float]]:
    """One table: without, with a fixed and with the adaptive twist."""
    report.text("", f"### {title}", "")
    report.text(
        "| noise | evidence | log-variance | ratio | best reward | least mean ESS | share |",
        "|---|---|---|---|---|---|---|",
    )
    plain, found = None, {}
    for name, twist in (
        ("plain", OFF),
        ("twisted, fixed, cap 1.5", FIXED),
        ("twisted (default)", DEFAULT),
    ):
        report.progress(f"{title}: {name}")
        line = run(name, twist)
        plain = plain or line
        ratio, error = variance_ratio(line, plain)
        found[name] = (line, ratio, error)
        report.text(
            f"| {name} | {line.evidence[0]:.4f} ± {line.evidence[1]:.4f} "
            f"| {line.log_evidence.var():.3f} | {ratio:.3f} ± {error:.3f} | {line.best.mean():.3f} "
            f"| {line.smallest_ess:.2f} | {line.share:.2f} |"
        )
        if line.evaluations != plain.evaluations:
            report.check(False, f"{name}: {line.evaluations} evaluations, not {plain.evaluations}")
    report.text("")
    if truth is not None:
        for line, _, _ in found.values():
            estimate, error = line.evidence
            report.check(
                abs(estimate - truth) < 4.0 * error,
                f"{line.name}: evidence {estimate:.4f} within 4 standard errors of {truth:.4f}",
            )
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description="What twisted noise is worth.")
    parser.add_argument("--quick", action="store_true", help="256 populations")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the report here")
    arguments = parser.parse_args()
    populations, report = 256 if arguments.quick else 4096, Report()
    logistic = logistic_reward()
    mixture = digits_mixture(0.1, torch.float32)
    draws = logistic(mixture.sample(1_000_000, seed=1)).double().exp()
    truth = float(draws.mean())
    run = partial(measure, populations=populations)
    report.text(
        f"{populations} populations; ± is one standard error (of ratios: bootstrap). Evidence by "
        f"plain Monte Carlo with a million exact samples of the mixture: {truth:.4f} ± "
        f"{float(draws.std()) / 1000:.4f}."
    )
    exact = mixture.denoiser(Linear())
    found = section(
        report,
        "The digits mixture, log p(8) of a logistic regression",
        partial(run, denoiser=exact, reward=logistic),
        truth,
    )
    for name in ("twisted, fixed, cap 1.5", "twisted (default)"):
        _, ratio, _ = found[name]
        report.check(ratio <= TARGET, f"{name}: log-variance ratio {ratio:.3f} <= {TARGET}")
    network = digits_denoiser()
    neural = ClassReward(load_digits_classifier("reward"), 8)
    found = section(
        report,
        "The digits network, log p(8) of the bundled classifier",
        partial(run, denoiser=network, reward=neural),
        None,
    )
    _, ratio, _ = found["twisted (default)"]
    report.check(ratio <= TARGET, f"default: log-variance ratio {ratio:.3f} <= {TARGET}")
    for title, reward in (
        ("The same network, log p(8) plus a wiggle", wiggling(1.0, neural)),
        ("The same network, a wiggle alone", wiggling(3.0)),
    ):
        found = section(report, title, partial(run, denoiser=network, reward=reward), None)
        _, ratio, error = found["twisted (default)"]
        report.check(
            ratio - 2.0 * error <= HARMLESS,
            f"the default turns itself off: ratio {ratio:.3f} ± {error:.3f}, not over {HARMLESS} "
            f"by two standard errors",
        )
    verdict = f"{report.failed} of the checks failed" if report.failed else "all checks pass"
    report.text("", f"Result: {verdict}." + (" (Quick run.)" if arguments.quick else ""))
    if arguments.out:
        report.write(arguments.out)
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
