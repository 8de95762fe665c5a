"""How accurate the default solver is, measured against an independent integrator.

    python -m benchmarks.accuracy [--quick] [--out docs/accuracy.md]

Checks the accuracy claims of `docs/accuracy.md`, one PASS or FAIL line each, and exits with 1 if
one fails. The tables go to stdout as Markdown (and into FILE, between the two marker comments if
it has them), progress goes to stderr.

Symbols: x = x_t, ε the transition's noise, a = α/σ, q = inner signal / inner noise, P = a² + q²,
c² = 1 + a², θ = arctan(q/c). Errors of x' = x_t' are root mean squares relative to the root mean
square of x' - γ x.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

import glass_flows
from benchmarks.pages import write_between_marks
from glass_flows.denoisers import DenoiserLike
from glass_flows.paths import Linear
from glass_flows.worlds import GaussianMixture, digits_mixture
from glass_flows.worlds.digits import digits_images

LINEAR = Linear()
OURS, PAPER = (2, 3, 4, 6, 10), (10, 20, 40)
PAIRS = {3: 10, 4: 20, 6: 40}
"""Default-solver evaluations: the evaluations of Algorithm 1 that they should match."""
WORST = 1.5
PRECISION = 0.15
"""Standard error to which a single transition's ratio should be known."""
FAR = 1e6
"""The q that stands for infinity in the reference: x' is then converged to 1 / q²."""

PosteriorMean = Callable[[Tensor, float], Tensor]
"""(y, amplitude) → E[z | y = amplitude z + noise of variance 1]."""


@dataclass(frozen=True)
class Sizes:
    """How much is measured: the full benchmark, or a look at it."""

    digits: int = 2048
    checkerboard: int = 2048
    slope_digits: int = 32
    slope_checkerboard: int = 512
    end_to_end: int = 2000
    exact: int = 20_000
    reference: int = 40
    slope_reference: int = 240
    batches: int = 4
    full: bool = True


QUICK = Sizes(
    digits=48,
    checkerboard=512,
    slope_digits=4,
    slope_checkerboard=128,
    end_to_end=200,
    exact=4000,
    reference=32,
    slope_reference=160,
    batches=1,
    full=False,
)


# --- what is measured -------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One transition t → t' of the linear path (α = t, σ = 1 - t) at correlation ρ."""

    t: float
    t_next: float
    rho: float

    @property
    def gamma(self) -> float:
        return self.rho * (1.0 - self.t_next) / (1.0 - self.t)

    @property
    def amplitude(self) -> float:
        return self.t / (1.0 - self.t)

    @property
    def alpha_bar(self) -> float:
        return self.t_next - self.gamma * self.t

    @property
    def sigma_bar(self) -> float:
        return (1.0 - self.t_next) * math.sqrt(1.0 - self.rho**2)

    def __str__(self) -> str:
        return f"{self.t:g} → {self.t_next:g}, ρ = {self.rho:.3g}"


def ddpm(t: float, t_next: float) -> Case:
    """The transition of DDPM ancestral sampling, ρ = a/a'."""
    return Case(t, t_next, t / (1 - t) * (1 - t_next) / t_next)


CASES = (
    Case(0.0, 0.2, 0.0),
    Case(0.2, 0.4, 0.4),
    Case(0.4, 0.6, 0.4),
    Case(0.6, 0.8, 0.4),
    Case(0.8, 1.0, 0.4),
    ddpm(0.4, 0.6),
    ddpm(0.6, 0.7),
    Case(0.3, 1.0, 0.0),
    Case(0.6, 1.0, 0.0),
    Case(0.6, 0.8, 0.9),
)
"""The ten transitions: all lengths, the longest ones and both ends among them."""


@dataclass(frozen=True)
class Problem:
    """A model twice: as the library's denoiser, and as a posterior mean computed here."""

    name: str
    denoiser: DenoiserLike
    mean: PosteriorMean
    data: Callable[[int], Tensor]

    def draw(self, case: Case, seed: int, batch: int = 0) -> tuple[Tensor, Tensor]:
        """(x, ε) for one transition; at t = 0 the noise is x itself."""
        data = self.data(batch)
        generator = torch.Generator().manual_seed(seed + 1000 * batch)
        normal = partial(torch.randn, data.shape, generator=generator, dtype=torch.float64)
        x = case.t * data + (1.0 - case.t) * normal()
        return x, normal() if case.t > 0.0 else x


def mixture_mean(means: Tensor, std: float) -> PosteriorMean:
    """E[z | y] of an equal-weight mixture of N(m_j, std² I); its own code, not the library's."""
    flat = means.flatten(1)
    halves = 0.5 * flat.square().sum(1)

    def mean(y: Tensor, amplitude: float) -> Tensor:
        gain = std**2 / (1.0 + (amplitude * std) ** 2)  # posterior variance within a component
        rows = y.flatten(1)
        pull = amplitude * gain / std**2
        logits = torch.addmm(-amplitude * pull * halves, rows, flat.T, alpha=pull)
        centre = torch.softmax(logits, 1) @ flat
        return (centre * (gain / std**2) + amplitude * gain * rows).view(y.shape)

    return mean


def sample_denoiser(mean: PosteriorMean) -> glass_flows.Denoiser:
    """The posterior mean as a network that predicts the sample, told the time t."""

    def network(x: Tensor, times: Tensor) -> Tensor:
        t = times[0].item()
        return mean(x / (1.0 - t), t / (1.0 - t))

    return glass_flows.Denoiser(network, LINEAR, prediction="sample", dtype=torch.float64)


def mixture_problem(name: str, means: Tensor, std: float, count: int) -> Problem:
    mixture, mean = GaussianMixture(means, std), mixture_mean(means, std)
    return Problem(
        name, sample_denoiser(mean), mean, lambda batch: mixture.sample(count, seed=1 + batch)
    )


def mixture_problems(digits: int, checkerboard: int) -> list[Problem]:
    """Two digits mixtures (64-d, 1,797 components) and a 2-d checkerboard (32 components)."""
    images = digits_images().double()
    squares = [(i + 0.5, j + 0.5) for i in range(-4, 4) for j in range(-4, 4) if (i + j) % 2 == 0]
    board = 1.1 * torch.tensor(squares, dtype=torch.float64)
    return [
        mixture_problem("digits 0.15", images, 0.15, digits),
        mixture_problem("digits 0.05", images, 0.05, digits),
        mixture_problem("checkerboard", board, 0.25, checkerboard),
    ]


# --- the independent reference ----------------------------------------------------------------


def reference(mean: PosteriorMean, case: Case, x: Tensor, eps: Tensor, steps: int) -> Tensor:
    """x' by the classical Runge-Kutta method, in θ and with the state v = cos(θ) u.

    du/dq = D and q = c tan θ give dv/dθ = (c D - v sin θ) / cos θ, which stays finite towards
    θ = π/2. Where σ̄ = 0 it is followed to q = FAR, and x' = γ x + ᾱ D there.
    """
    a, ended = case.amplitude, case.sigma_bar == 0.0
    c, q_end = math.hypot(1.0, a), FAR if ended else case.alpha_bar / case.sigma_bar

    def D(theta: float, v: Tensor) -> Tensor:
        q = c * math.tan(theta)
        amplitude = math.hypot(a, q)
        u = v / math.cos(theta)
        if amplitude == 0.0:
            return mean(u, 0.0)
        return mean((a / (1.0 - case.t) * x + q * u) / amplitude, amplitude)

    def slope(theta: float, v: Tensor) -> Tensor:
        return (c * D(theta, v) - math.sin(theta) * v) / math.cos(theta)

    v, theta, end = eps, 0.0, math.atan(q_end / c)
    h = end / steps
    for i in range(steps):
        theta = i * h
        k1 = slope(theta, v)
        k2 = slope(theta + h / 2, v + h / 2 * k1)
        k3 = slope(theta + h / 2, v + h / 2 * k2)
        k4 = slope(theta + h, v + h * k3)
        v = v + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    if ended:
        return case.gamma * x + case.alpha_bar * D(end, v)
    return case.gamma * x + case.sigma_bar / math.cos(end) * v


def transition(
    problem: Problem, case: Case, x: Tensor, eps: Tensor, steps: int, solver: str = "default"
) -> Tensor:
    """x' by the library."""
    return glass_flows.transition(
        problem.denoiser,
        x,
        case.t,
        case.t_next,
        rho=case.rho,
        steps=steps,
        solver=solver,
        noise=eps,
    )


def rms(x: Tensor) -> float:
    return x.square().mean().sqrt().item()


def single_errors(x: Tensor, truth: Tensor) -> Tensor:
    """Root mean square error of each sample."""
    return (x - truth).flatten(1).square().mean(1).sqrt()


def geometric_mean(values: list[float]) -> float:
    return math.exp(sum(math.log(value) for value in values) / len(values))


# --- the report -------------------------------------------------------------------------------


@dataclass
class Report:
    """Markdown lines, printed as they come; remembers whether a check failed."""

    command: str = "python -m benchmarks.accuracy"
    lines: list[str] = field(default_factory=list)
    failed: int = 0
    began: float = field(default_factory=time.monotonic)

    def text(self, *lines: str) -> None:
        self.lines.extend(lines)
        print("\n".join(lines), flush=True)

    def table(self, header: list[str], rows: list[list[str]]) -> None:
        shown = [header, ["---"] * len(header), *rows]
        self.text("", *("| " + " | ".join(row) + " |" for row in shown), "")

    def check(self, ok: bool, what: str) -> None:
        self.failed += not ok
        self.text(f"- **{'PASS' if ok else 'FAIL'}** {what}")

    def progress(self, what: str) -> None:
        print(f"[{time.monotonic() - self.began:5.0f} s] {what}", file=sys.stderr, flush=True)

    def write(self, file: Path) -> None:
        write_between_marks(file, self.command, "\n".join(self.lines))


@dataclass
class Errors:
    """Relative errors of one model, (solver, evaluations) → per transition, one per sample."""

    cases: tuple[Case, ...] = CASES
    single: dict[tuple[str, int], list[Tensor]] = field(default_factory=dict)
    converged: list[float] = field(default_factory=list)

    def mean(self, solver: str, steps: int) -> float:
        return geometric_mean([rms(errors) for errors in self.single[solver, steps]])

    def pairs(self, ours: int) -> list[tuple[Tensor, Tensor]]:
        """Our errors and Algorithm 1's at the paired number of evaluations."""
        return list(zip(self.single["default", ours], self.single["paper", PAIRS[ours]]))

    def ratios(self, ours: int) -> list[float]:
        return [rms(a) / rms(b) for a, b in self.pairs(ours)]

    def medians(self, ours: int) -> list[float]:
        return [(a.median() / b.median()).item() for a, b in self.pairs(ours)]

    def noise(self, ours: int, index: int) -> float:
        """Standard error of one transition's ratio (of two means over the same samples)."""
        a, b = (errors.square() for errors in self.pairs(ours)[index])
        relative = (a / a.mean() - b / b.mean()).std().item() / math.sqrt(len(a))
        return 0.5 * relative * self.ratios(ours)[index]


def measure(
    problem: Problem,
    steps: int,
    report: Report,
    batches: int = 1,
    cases: tuple[Case, ...] = CASES,
    ours: tuple[int, ...] = OURS,
) -> Errors:
    """Errors of both solvers on these transitions; `steps` are those of the reference.

    A transition whose ratios are not known to `PRECISION` gets more batches, up to `batches`: the
    rule looks at the standard errors, never at the ratios themselves.
    """
    result = Errors(cases)
    for i, case in enumerate(cases):
        for batch in range(batches):
            x, eps = problem.draw(case, 100 + i, batch)
            truth = reference(problem.mean, case, x, eps, steps)
            if batch == 0:
                size = rms(truth - case.gamma * x)
                coarse = reference(problem.mean, case, x, eps, steps // 2)
                result.converged.append(rms(coarse - truth) / size)
            for solver, counts in (("default", ours), ("paper", PAPER)):
                for count in counts:
                    found = transition(problem, case, x, eps, count, solver)
                    errors = single_errors(found, truth) / size
                    known = result.single.setdefault((solver, count), [])
                    known[i:] = [torch.cat([*known[i:], errors])]
            report.progress(f"{problem.name}: {case}" + (f", batch {batch + 1}" if batch else ""))
            if all(result.noise(ours, i) <= PRECISION for ours in PAIRS):
                break
    return result


def error_table(report: Report, results: dict[str, Errors]) -> None:
    columns = [("default", M) for M in OURS] + [("paper", M) for M in PAPER]
    header = ["model", *map(str, OURS), *(f"Alg. 1, {M}" for M in PAPER), "reference"]
    rows = [
        [name, *(f"{e.mean(*column):.5f}" for column in columns), f"{max(e.converged):.0e}"]
        for name, e in results.items()
    ]
    report.table(header, rows)


def ratio_table(report: Report, results: dict[str, Errors]) -> None:
    """Our error / Algorithm 1's: over all transitions, the worst of them, and by medians."""
    rows = []
    for name, errors in results.items():
        for ours, paper in PAIRS.items():
            ratios, medians = errors.ratios(ours), errors.medians(ours)
            worst = ratios.index(max(ratios))
            rows.append(
                [
                    name,
                    f"{ours} : {paper}",
                    f"{geometric_mean(ratios):.2f}",
                    f"{ratios[worst]:.2f} ± {errors.noise(ours, worst):.2f}",
                    str(errors.cases[worst]),
                    f"{geometric_mean(medians):.2f}",
                    f"{max(medians):.2f}",
                ]
            )
    header = ["model", "evaluations", "ratio", "worst", "where", "median ratio", "its worst"]
    report.table(header, rows)


def case_table(report: Report, results: dict[str, Errors]) -> None:
    """The ratio on every single transition; per model for 3 : 10, 4 : 20 and 6 : 40."""
    rows = [
        [str(case), *(" / ".join(f"{e.ratios(M)[i]:.2f}" for M in PAIRS) for e in results.values())]
        for i, case in enumerate(next(iter(results.values())).cases)
    ]
    report.table(["transition", *results], rows)


# --- the statements ---------------------------------------------------------------------------


def check_transitions(report: Report, sizes: Sizes) -> None:
    report.text(
        "### (a) Single transitions of exact models",
        "",
        f"{sizes.digits} samples per transition on the digits mixtures, {sizes.checkerboard} on "
        f"the checkerboard, and up to {sizes.batches} times as many where a ratio is not known to "
        f"{PRECISION} (one standard error); fixed seeds, float64. "
        "Errors: geometric mean over the ten transitions. "
        f"Last column: how far the reference ({sizes.reference} Runge-Kutta steps, four "
        "evaluations each) moves at most, over the transitions, when it is made with half as many.",
    )
    results = {}
    for problem in mixture_problems(sizes.digits, sizes.checkerboard):
        results[problem.name] = measure(problem, sizes.reference, report, sizes.batches)
    error_table(report, results)
    report.text(
        "Our error divided by Algorithm 1's. Root mean squares are dominated by the few samples "
        "that end in another mode than the reference, so they jump with the seed; the worst "
        "one has its standard error, and the ratio of median errors stands beside for information.",
    )
    ratio_table(report, results)
    report.text("The same on each transition, for 3 : 10 / 4 : 20 / 6 : 40 evaluations:")
    case_table(report, results)
    for name, errors in results.items():
        for ours, paper in PAIRS.items():
            ratios = errors.ratios(ours)
            mean, worst = geometric_mean(ratios), max(ratios)
            what = f"(a) {name}: {ours} evaluations against Algorithm 1's {paper}"
            report.check(mean <= 1.0, f"{what}: ratio {mean:.2f} ≤ 1")
            if sizes.full:
                noise = errors.noise(ours, ratios.index(worst))
                what += f", worst transition: {worst:.2f} (± {noise:.2f}) ≤ {WORST}"
                report.check(worst <= WORST, what)


def gaussian_map(case: Case, centre: Tensor, x: Tensor, eps: Tensor) -> Tensor:
    """x' for data N(centre, I), in closed form: u(q) = ε √(1 + q²/c²) + q E[z | x]."""
    known = case.amplitude * x / (1.0 - case.t) if case.t > 0.0 else torch.zeros_like(x)
    c2 = 1.0 + case.amplitude**2
    D = (centre + known) / c2
    noise = math.sqrt(case.sigma_bar**2 + case.alpha_bar**2 / c2)
    return case.gamma * x + case.alpha_bar * D + noise * eps


def check_gaussian(report: Report) -> None:
    generator = torch.Generator().manual_seed(3)
    centre = 0.7 * torch.randn(1, 8, generator=generator, dtype=torch.float64)
    problem = mixture_problem("Gaussian", centre, 1.0, 256)
    report.text("", "### (b) Isotropic Gaussian data", "")
    for count in (2, 3, 4, 6):
        worst = 0.0
        for i, case in enumerate(CASES):
            x, eps = problem.draw(case, seed=200 + i)
            error = transition(problem, case, x, eps, count) - gaussian_map(case, centre, x, eps)
            worst = max(worst, error.abs().max().item())
        what = f"(b) data N(m, I), {count} evaluations: largest error over the ten transitions"
        report.check(worst < 1e-10, f"{what} {worst:.0e} < 1e-10")


def slope_row(
    problem: Problem, steps: int, report: Report
) -> tuple[list[float], list[float], list[list[float]]]:
    """Per transition: slopes of the RMS error and of the median one, and the errors behind."""
    slopes, medians, errors = [], [], []
    for i, case in enumerate(CASES):
        x, eps = problem.draw(case, seed=300 + i)
        truth = reference(problem.mean, case, x, eps, steps)
        half = reference(problem.mean, case, x, eps, steps // 2)
        size = rms(truth - case.gamma * x)
        coarse = single_errors(transition(problem, case, x, eps, 80), truth)
        fine = single_errors(transition(problem, case, x, eps, 160), truth)
        slopes.append(math.log2(rms(coarse) / rms(fine)))
        medians.append(math.log2(coarse.median() / fine.median()))
        errors.append([rms(coarse) / size, rms(fine) / size, rms(half - truth) / size])
        report.progress(f"convergence, {problem.name}: {case}")
    return slopes, medians, errors


def check_slope(report: Report, sizes: Sizes) -> None:
    """log2(error at 80 / error at 160) against the reference."""
    problems = mixture_problems(sizes.slope_digits, sizes.slope_checkerboard)
    images = digits_images().double()
    problems.append(mixture_problem("digits 0.5", images, 0.5, sizes.slope_digits))
    report.text(
        "",
        "### (c) Convergence",
        "",
        f"{sizes.slope_digits} samples per transition on the digits mixtures and "
        f"{sizes.slope_checkerboard} on the checkerboard, against {sizes.slope_reference} "
        "Runge-Kutta steps. On narrow mixtures single samples near the border of two modes "
        "dominate the root mean square and converge late or by luck; the slope of the median "
        "error and a smooth mixture (width 0.5) stand beside them.",
    )
    rows, lines = [], []
    for problem in problems:
        slopes, medians, errors = slope_row(problem, sizes.slope_reference, report)
        slope, median = (sum(values) / len(CASES) for values in (slopes, medians))
        shown = [f"{geometric_mean(list(column)):.1e}" for column in zip(*errors)]
        each = " ".join(f"{value:.2f}" for value in slopes)
        rows.append([problem.name, *shown, f"{slope:.3f}", f"{median:.3f}", each])
        what = f"(c) {problem.name}: slope from 80 to 160 {slope:.3f} ≥ 1.8"
        if sizes.full or problem.name == "checkerboard":  # four samples of a digit say nothing
            lines.append((slope >= 1.8, f"{what} (of the median error: {median:.3f})"))
    header = ["model", "error, 80", "error, 160", "reference", "slope", "median's", "each (RMS)"]
    report.table(header, rows)
    for ok, what in lines:
        report.check(ok, what)


# --- end to end -------------------------------------------------------------------------------


def digit_energy(z: Tensor, std: float) -> Tensor:
    """E(z) = -log Σ_j exp(-|z - m_j|²/2w²), per sample."""
    flat, means = z.flatten(1), digits_images().to(z).flatten(1)
    squares = flat.square().sum(1, keepdim=True) - 2.0 * flat @ means.T + means.square().sum(1)
    return -torch.logsumexp(-squares / (2.0 * std**2), 1)


def euler_ode(denoiser: DenoiserLike, noise: Tensor, steps: int) -> Tensor:
    """The probability-flow ODE dx/dt = (D - x)/(1 - t) by Euler steps in t."""
    x = noise
    for i in range(steps):
        t = i / steps
        x = x + (denoiser(x, t) - x) / (1.0 - t) / steps
    return x


def mean_distances(x: Tensor, y: Tensor) -> Tensor:
    """Mean Euclidean distance from each row of x to the rows of y (to the others, if y is x)."""
    total = torch.cat([torch.cdist(part, y).sum(1) for part in x.split(500)])
    return total / (len(y) - (1 if y is x else 0))


@dataclass
class Cloud:
    """Samples beside exact ones: 2 E|X - Y| - E|X - X'| - E|Y - Y'| and what it is made of."""

    toward: Tensor  # per sample, mean distance to the exact ones
    within: Tensor  # per sample, mean distance to the other samples
    back: Tensor  # per exact sample, mean distance to these samples

    @classmethod
    def of(cls, x: Tensor, exact: Tensor) -> Cloud:
        x = x.flatten(1)
        return cls(mean_distances(x, exact), mean_distances(x, x), mean_distances(exact, x))

    def excess(self, other: Cloud) -> tuple[float, float]:
        """Energy distance minus that of `other`, and its standard error (both sample noises)."""
        value, noise = 0.0, 0.0
        for sign, cloud in ((1.0, self), (-1.0, other)):
            value += sign * (2.0 * cloud.toward - cloud.within).mean().item()
            influence = 2.0 * (cloud.toward - cloud.within)
            noise += influence.var().item() / len(influence)
        shared = 2.0 * (self.back - other.back)
        return value, math.sqrt(noise + shared.var().item() / len(shared))


def samplers(denoiser: DenoiserLike, start: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Name → a run on the same starting noise; the number of network evaluations in the name."""

    def six(steps: int, solver: str = "default") -> Callable[[], Tensor]:
        return partial(
            glass_flows.sample,
            denoiser,
            start,
            transitions=6,
            steps=steps,
            rho=0.4,
            solver=solver,
            seed=12,
            progress=False,
        )

    return {
        "ours, 6 × 10": six(10),
        "ours, 6 × 6": six(6),
        "ours, 6 × 4": six(4),
        "Algorithm 1, 6 × 10": six(10, "paper"),
        "Euler in t on the ODE, 60": partial(euler_ode, denoiser, start, 60),
        "converged ODE, 200": partial(
            glass_flows.sample,
            denoiser,
            start,
            transitions=1,
            steps=200,
            rho="ode",
            progress=False,
        ),
    }


def check_end_to_end(report: Report, sizes: Sizes) -> None:
    width = 0.1
    mixture = digits_mixture(width)
    exact = mixture.sample(sizes.exact, seed=10)
    law = digit_energy(exact, width).mean().item()
    generator = torch.Generator().manual_seed(11)
    shape = (sizes.end_to_end, *mixture.shape)
    start = torch.randn(shape, generator=generator, dtype=torch.float64)
    energies: dict[str, Tensor] = {}
    clouds: dict[str, Cloud] = {}
    for name, draw in samplers(sample_denoiser(mixture_mean(mixture.means, width)), start).items():
        z = draw()
        energies[name] = digit_energy(z, width)
        clouds[name] = Cloud.of(z, exact.flatten(1))
        report.progress(f"end to end: {name}")
    fresh = mixture.sample(sizes.end_to_end, seed=13)
    energies["exact samples"] = digit_energy(fresh, width)
    clouds["exact samples"] = Cloud.of(fresh, exact.flatten(1))
    report_end_to_end(report, sizes, law, energies, clouds)


def report_end_to_end(
    report: Report, sizes: Sizes, law: float, energies: dict[str, Tensor], clouds: dict[str, Cloud]
) -> None:
    ode, rows = clouds["converged ODE, 200"], []
    for name, energy in energies.items():
        error = energy.std().item() / math.sqrt(len(energy))
        excess, noise = clouds[name].excess(ode)
        rows.append([name, f"{energy.mean():.2f} ± {error:.2f}", f"{excess:+.4f} ± {noise:.4f}"])
    report.text(
        "",
        "### (d) End to end",
        "",
        f"Digits mixture of width 0.1, six transitions at ρ = 0.4, {sizes.end_to_end} samples. "
        f"Mean energy of the exact law, from {sizes.exact} samples: {law:.2f}. Energy distance to "
        "those, minus that of the converged ODE, ± one standard error (both sample sets' noise).",
    )
    report.table(["sampler", "mean energy", "energy distance − ODE's"], rows)
    mean = energies["ours, 6 × 10"].mean().item()
    excess, noise = clouds["ours, 6 × 10"].excess(ode)
    report.check(
        abs(mean - law) <= 1.5, f"(d) mean energy {mean:.2f} within 1.5 of the law's {law:.2f}"
    )
    report.check(
        excess <= 2.0 * noise,
        f"(d) energy distance not above the converged ODE's, up to two standard errors: "
        f"{excess:+.4f} ≤ {2 * noise:.4f}",
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="Accuracy of the default solver.")
    parser.add_argument("--quick", action="store_true", help="fewer samples, under a minute")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the report here")
    arguments = parser.parse_args()
    sizes, report = QUICK if arguments.quick else Sizes(), Report()
    with torch.inference_mode():
        check_transitions(report, sizes)
        check_gaussian(report)
        check_slope(report, sizes)
        check_end_to_end(report, sizes)
    verdict = f"{report.failed} of the checks failed" if report.failed else "all checks pass"
    report.text("", f"Result: {verdict}." + ("" if sizes.full else " (Quick run: few samples.)"))
    if arguments.out:
        report.write(arguments.out)
    report.progress("done")
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
