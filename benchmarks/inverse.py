"""Inverse problems by refinement, beside their exact posteriors.

    python -m benchmarks.inverse [--quick] [--out docs/inverse.md]

The prior is a mixture of Gaussians on the 1,797 handwritten digits of scikit-learn, whose denoiser
and, for linear measurements y = A z + τ n, whose posterior are exact. The likelihood is the reward,
at λ = 1. Measured against exact: posterior mean, posterior standard deviation, log-evidence.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from benchmarks.pages import write_between_marks
from glass_flows import Refine, Sampler, Steering
from glass_flows.paths import Linear
from glass_flows.plans import Default
from glass_flows.research.writing import markdown
from glass_flows.steering import Method, Ramp, WeightedResult
from glass_flows.steering.loop import Watch, conduct
from glass_flows.steering.population import Population
from glass_flows.worlds import digits_mixture

WIDTH, SIGMA = 0.3, 0.7
PARTICLES = 64
COMMAND = "python -m benchmarks.inverse"


@dataclass(frozen=True)
class Measurement:
    """y = A z + τ n; A (m, 64)."""

    name: str
    operator: Tensor
    noise: float

    def likelihood(self, y: Tensor) -> Callable[[Tensor], Tensor]:
        """log p(y | z) without its constant: the reward."""

        def reward(z: Tensor) -> Tensor:
            missed = y - z.flatten(1) @ self.operator.T.to(z)
            return -missed.square().sum(1) / (2 * self.noise**2)

        return reward

    def posterior(self, means: Tensor, y: Tensor) -> tuple[Tensor, Tensor, float]:
        """Exact: mean (64,), standard deviations (64,), log E_p[exp(reward)]."""
        A, tau = self.operator, self.noise
        spread = WIDTH**2 * A @ A.T + tau**2 * torch.eye(len(A), dtype=A.dtype)
        missed = y - means @ A.T
        fit = -0.5 * (missed * torch.linalg.solve(spread, missed.T).T).sum(1)
        weights = fit.softmax(0)
        gain = WIDTH**2 * torch.linalg.solve(spread, A).T  # (64, m)
        centres = means + missed @ gain.T
        within = WIDTH**2 * (1.0 - (gain * A.T).sum(1))
        mean = weights @ centres
        variance = within + weights @ (centres - mean).square()
        # The reward leaves out log N(0; 0, τ² I).
        scale = torch.logdet(spread) - len(A) * np.log(tau**2)
        evidence = fit.logsumexp(0) - np.log(len(means)) - 0.5 * scale
        return mean, variance.sqrt(), float(evidence)


def measurements() -> list[Measurement]:
    pixels = torch.eye(64, dtype=torch.float64)
    blocks = pixels.view(64, 4, 2, 4, 2).mean((2, 4)).view(64, 16).T
    return [
        Measurement("mask: the upper half", pixels[:32], 0.3),
        Measurement("blur: means of 2 × 2", blocks, 0.1),
        Measurement("noise", pixels, 0.7),
    ]


def figures(
    one: Measurement, method: Method, sampler: Sampler, count: int
) -> tuple[str, str, str, str]:
    """Over `count` digits, each measured once."""
    mixture = digits_mixture(WIDTH)
    means = mixture.means.double().flatten(1)
    denoiser = mixture.denoiser(Linear())
    generator = torch.Generator().manual_seed(5)
    errors, spreads, evidences, costs = [], [], [], 0
    for i in range(count):
        z = means[torch.randint(len(means), (), generator=generator)]
        z = z + WIDTH * torch.randn(64, generator=generator, dtype=torch.float64)
        noise = torch.randn(len(one.operator), generator=generator, dtype=torch.float64)
        y = one.operator @ z + one.noise * noise
        mean, deviation, evidence = one.posterior(means, y)
        population = Population.of(PARTICLES, (1, 8, 8), seed=i, dtype=torch.float64)
        quiet = Watch(progress=False)
        result = cast(
            WeightedResult,
            conduct(denoiser, one.likelihood(y), method, sampler, population, watch=quiet),
        )
        weights, samples = result.log_weights[0].softmax(0), result.samples[0].flatten(1)
        found = weights @ samples
        spread = (weights @ (samples - found).square()).sqrt()
        errors.append(
            float((found - mean).square().mean().sqrt() / deviation.square().mean().sqrt())
        )
        spreads.append(float(spread.square().mean().sqrt() / deviation.square().mean().sqrt()))
        evidences.append(float(result.log_evidence[0]) - evidence)
        costs += result.network_evaluations
    return (
        f"{np.mean(errors):.2f} ± {np.std(errors) / count**0.5:.2f}",
        f"{np.mean(spreads):.2f} ± {np.std(spreads) / count**0.5:.2f}",
        f"{np.mean(evidences):+.2f} ± {np.std(evidences):.2f}",
        f"{costs / count / PARTICLES:.0f}",
    )


def table(count: int) -> Iterator[str]:
    solver = Default(sigma_data=SIGMA)
    ode = Sampler(1, 12, "ode", solver=solver)
    methods: dict[str, tuple[Method, Sampler]] = {
        "steering, 24 looks": (Steering(PARTICLES, 1.0), Sampler(24, 4, 0.4, solver=solver)),
        "steering, 63 looks": (Steering(PARTICLES, 1.0), Sampler(63, 4, 0.4, solver=solver)),
        "refinement, 28 moves": (_refinement(28), ode),
        "refinement, 80 moves": (_refinement(80), ode),
    }
    rows = [
        (one.name, name, *figures(one, method, sampler, count))
        for one in measurements()
        for name, (method, sampler) in methods.items()
    ]
    head = ("measured", "method", "error of the mean", "spread", "log Ẑ - log Z", "evaluations")
    yield markdown(head, rows)
    yield (
        f"{count} digits; {PARTICLES} particles, λ = 1. Error of the posterior mean and spread of "
        "the samples, root mean squares over the pixels, in units of the exact posterior's "
        f"standard deviation: of {PARTICLES} exact draws they are "
        f"{PARTICLES**-0.5:.2f} and {(1 - 1 / PARTICLES) ** 0.5:.2f}. Log-evidence: mean ± "
        "standard deviation over the digits. Evaluations are of the denoiser, for each particle."
    )


def _refinement(moves: int) -> Refine:
    """λ rises late, as a sharp likelihood wants it, and the last moves are short."""
    return Refine(
        PARTICLES, 1.0, moves=moves, move_steps=3, move_times=Ramp(0.1, 0.95), returned="last",
        schedule=lambda share: share**4,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two digits")
    parser.add_argument("--out", type=Path, help="a page with a place for the table")
    given = parser.parse_args()
    text = "\n".join(table(2 if given.quick else 20)) + "\n"
    print(text)
    if given.out is not None:
        write_between_marks(given.out, COMMAND, text)


if __name__ == "__main__":
    main()
