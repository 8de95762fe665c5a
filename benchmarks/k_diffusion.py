"""What `sample_glass` costs and keeps: its solver beside the others, and holes filled under masks.

    python -m benchmarks.k_diffusion [--out docs/k_diffusion.md]

Prints the tables of `docs/k_diffusion.md` as Markdown. About half a minute of one core.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from glass_flows import Denoiser, plan
from glass_flows.execute import run
from glass_flows.k_diffusion import sample_glass
from glass_flows.noise import KeyedNoise
from glass_flows.paths import Linear
from glass_flows.plans import plan_transition
from glass_flows.worlds import GaussianMixture
from glass_flows.worlds.digits import load_digits_network

MARKERS = "<!-- begin: python -m benchmarks.k_diffusion -->", "<!-- end -->"
ENDS = ((0.0, 0.2), (0.2, 0.4), (0.4, 0.6), (0.6, 0.8), (0.8, 1.0), (0.6, 1.0), (0.2, 1.0))
STEPS = (2, 3, 4, 6)
SOLVERS = ("second-order", "default", "first-order")


def digits(w: float, batch: int = 60) -> Denoiser:
    return Denoiser(
        load_digits_network(),
        Linear(),
        conditioning={"label": torch.arange(batch) % 10},
        unconditional={"label": torch.full((batch,), 10)},
        guidance_scale=w,
    )


def errors(w: float) -> Iterator[str]:
    """Root mean square errors of transitions at ρ = 0.4, relative to x'; geometric means."""
    denoiser, shape = digits(w), (60, 1, 8, 8)
    generator = torch.Generator().manual_seed(0)
    cases = []
    for t, t_next in ENDS:
        noise, other = torch.randn(2, *shape, generator=generator)
        ode = plan(Linear(), transitions=1, steps=20, rho="ode")
        x = t * run(ode, denoiser, noise, KeyedNoise(0)) + (1 - t) * other
        exact = run(
            plan_transition(Linear(), t, t_next, rho=0.4, steps=40), denoiser, x, KeyedNoise(1)
        )
        cases.append((t, t_next, x, exact))
    for solver in SOLVERS:
        told = solver if solver == "first-order" else f"{solver}:guidance={w}"
        cells = []
        for steps in STEPS:
            logs = []
            for t, t_next, x, exact in cases:
                table = plan_transition(Linear(), t, t_next, rho=0.4, steps=steps, solver=told)
                got = run(table, denoiser, x, KeyedNoise(1))
                logs.append(float((got - exact).square().mean() / exact.square().mean()))
            cells.append(math.exp(sum(map(math.log, logs)) / len(logs) / 2))
        yield f"| {w:g} | `{solver}` | " + " | ".join(f"{cell:.4f}" for cell in cells) + " |"


# --- masks ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Hole:
    """Pixels of one of nine greys, `free` of 64 in the hole; the model blends as ComfyUI's does."""

    free: int
    flow: bool
    batch: int = 2000
    std: float = 0.25

    def mixture(self) -> GaussianMixture:
        greys = torch.linspace(-2, 2, 9, dtype=torch.float64)
        return GaussianMixture(greys[:, None].expand(9, 64).contiguous(), self.std)

    def sigmas(self, evaluations: int) -> list[float]:
        if self.flow:
            return [1 - i / evaluations for i in range(evaluations + 1)]
        first, last = 20.0 ** (1 / 7), 0.02 ** (1 / 7)
        karras = [first + i / (evaluations - 1) * (last - first) for i in range(evaluations)]
        return [level**7 for level in karras] + [0.0]

    def filled(self, sampler: Callable[..., Tensor], evaluations: int) -> tuple[float, float]:
        """The step from outside into the hole (RMS), and the largest change of what is kept."""
        mixture, kept = self.mixture(), torch.arange(64) < 64 - self.free
        latent = mixture.sample(self.batch, seed=1)
        noise = torch.randn(
            latent.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2)
        )

        def noised(sigma: float) -> Tensor:
            return (1 - sigma if self.flow else 1.0) * latent + sigma * noise

        def model(x: Tensor, sigma: Tensor, seed: int | None = None) -> Tensor:
            level = float(sigma[0])
            x = torch.where(kept, noised(level), x)
            D = mixture.posterior_mean(x, 1 - level if self.flow else 1.0, level)
            return torch.where(kept, latent, D)

        sigmas = self.sigmas(evaluations)
        end = sampler(model, noised(sigmas[0]), sigmas, {"seed": 0}, flow=self.flow)
        step = end[:, ~kept].mean(1) - latent[:, kept].mean(1)
        return float(step.square().mean().sqrt()), float((end - latent)[:, kept].abs().max())

    def exact(self) -> float:
        """The same step of the mixture itself."""
        return self.std * math.sqrt(1 / self.free + 1 / (64 - self.free))


def euler(
    model: Callable[..., Tensor], x: Tensor, sigmas: list[float], extra: object, flow: bool
) -> Tensor:
    for sigma, following in pairwise(sigmas):
        x = x + (x - model(x, x.new_full(x.shape[:1], sigma))) / sigma * (following - sigma)
    return x


def glass(**settings: object) -> Callable[..., Tensor]:
    return lambda *args, **given: sample_glass(*args, disable=True, **given, **settings)


SAMPLERS = {
    "Euler": euler,
    '`steps=1, rho="ddpm"`': glass(steps=1, rho="ddpm"),
    "`steps=4`, as by default": glass(),
    '`steps=4, solver="default"`': glass(solver="default"),
}


def masks() -> Iterator[str]:
    yield "| model | hole | sampler | step at 24 | at 96 | exact | change of what is kept |"
    yield "|-|-|-|-|-|-|-|"
    for flow in (False, True):
        for free in (4, 32):
            hole = Hole(free, flow)
            for name, sampler in SAMPLERS.items():
                (few, change), (many, _) = (hole.filled(sampler, n) for n in (24, 96))
                kind = "flow" if flow else "z + σ ε"
                yield (
                    f"| {kind} | {free} of 64 | {name} | {few:.3f} | {many:.3f} | "
                    f"{hole.exact():.3f} | {change:.1g} |"
                )


def report() -> Iterator[str]:
    yield "| w | solver | " + " | ".join(f"M = {steps}" for steps in STEPS) + " |"
    yield "|-|-|" + "-|" * len(STEPS)
    for w in (1.0, 3.0, 5.0, 7.0):
        yield from errors(w)
    yield ""
    yield from masks()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="a page, whose marked part is written anew")
    given = parser.parse_args()
    with torch.no_grad():
        text = "\n".join(report())
    print(text)
    if given.out is not None:
        before, _, rest = given.out.read_text(encoding="utf-8").partition(MARKERS[0])
        after = rest.partition(MARKERS[1])[2]
        given.out.write_text(f"{before}{MARKERS[0]}\n\n{text}\n\n{MARKERS[1]}{after}", "utf-8")


if __name__ == "__main__":
    main()
