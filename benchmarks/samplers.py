"""The stochastic samplers of the field as rows of our table: their own formulas beside ours.

    python -m benchmarks.samplers [--out docs/samplers.md]

Every original is written out as its source has it (or is its class in diffusers), and takes one
step from the same x, D and noise as ours with one evaluation; the table says how far apart they
end. tests/core/test_samplers.py holds every row to 1e-6.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.pages import write_between_marks
from glass_flows import paths
from glass_flows.plans import Ends, Kernel, Sampler, resolve_rho

COMMAND = "python -m benchmarks.samplers"
Step = Callable[[Ends, Tensor, Tensor, Tensor], Tensor]
"""x' of a transition from x, the clean estimate D and standard normal noise."""

BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
CUMULATED = torch.cumprod(1 - BETAS, 0)
TABLE = paths.DiscreteDiffusion(CUMULATED)
LINEAR, EDM = paths.Linear(), paths.EDM()


@dataclass(frozen=True)
class Row:
    """A sampler of the field: name, where its formula is from, ours, and its step."""

    name: str
    source: str
    path: paths.Path
    rho: str
    step: Step
    single: bool = False  # draws its noise in float32

    def worst(self) -> float:
        """The largest difference of one step, over transitions and numbers."""
        return max(self.error(*pair) for pair in transitions(self.path))

    def error(self, t: float, t_next: float) -> float:
        ends = Ends.of(self.path, t, t_next)
        generator = torch.Generator().manual_seed(round(1e6 * t))
        x, D = torch.randn(2, 1, 64, generator=generator, dtype=torch.float64)
        dtype = torch.float32 if self.single else torch.float64
        noise = torch.randn(1, 64, generator=torch.Generator().manual_seed(0), dtype=dtype).double()
        rule = Sampler(1, 1, self.rho).rho
        kernel = Kernel.of(ends, resolve_rho(rule, ends))
        ours = kernel.gamma * x + kernel.alpha_bar * D + kernel.sigma_bar * noise
        return float((self.step(ends, x, D, noise) - ours).abs().max())


def transitions(path: paths.Path) -> list[tuple[float, float]]:
    """From noise towards data, none from pure noise; of trained times where there are some."""
    if isinstance(path, paths.DiscreteDiffusion):
        times = path.trained_times[::-1]  # by timestep
        return [(times[i], times[i - 20]) for i in (900, 600, 80)]
    return [(0.05, 0.1), (0.2, 0.6), (0.5, 0.9), (0.9, 0.99)]


# --- as their sources have them -------------------------------------------------------------------


def flow_cps(eta: float, ends: Ends, x: Tensor, D: Tensor, noise: Tensor) -> Tensor:
    s, after = ends.sigma, ends.sigma_next
    spread = after * math.sin(eta * math.pi / 2)
    predicted = (x - (1 - s) * D) / s
    return (1 - after) * D + math.sqrt(after**2 - spread**2) * predicted + spread * noise


def frozen_mean(eta: float, ends: Ends, x: Tensor, D: Tensor, noise: Tensor) -> Tensor:
    """The SDE of Flow-GRPO, dx = (v + g²/2s (x + (1 - s) v)) ds + g dw, with D held.

    What is kept of the noise x - (1 - s) D, and the variance that comes to it, by Runge-Kutta from
    s = σ down to σ'; g² = η² s/(1 - s).
    """
    parts, s = 4_000, ends.sigma
    step = (ends.sigma_next - s) / parts

    def slope(s: float, state: Tensor) -> Tensor:
        g2 = eta**2 * s / (1 - s)
        rate = (1 + g2 / (2 * s)) / s
        return torch.stack((rate * state[0], 2 * rate * state[1] - g2))

    state = torch.tensor([1.0, 0.0], dtype=torch.float64)  # kept, variance
    for i in range(parts):
        at = s + i * step
        k1 = slope(at, state)
        k2 = slope(at + step / 2, state + step / 2 * k1)
        k3 = slope(at + step / 2, state + step / 2 * k2)
        k4 = slope(at + step, state + step * k3)
        state = state + step / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    kept, spread = state[0], state[1].sqrt()
    return ends.alpha_next * D + kept * (x - ends.alpha * D) + spread * noise


def dpm_solver_sde(eta: float, ends: Ends, x: Tensor, D: Tensor, noise: Tensor) -> Tensor:
    h = math.log(ends.alpha_next / ends.sigma_next) - math.log(ends.amplitude)
    kept = ends.sigma_next / ends.sigma * math.exp(-h * eta)
    spread = ends.sigma_next * math.sqrt(1 - math.exp(-2 * h * eta))
    return kept * x + ends.alpha_next * (1 - math.exp(-h - h * eta)) * D + spread * noise


def euler_ancestral(eta: float, ends: Ends, x: Tensor, D: Tensor, noise: Tensor) -> Tensor:
    s, after = ends.sigma, ends.sigma_next  # of x/α, which is x where α = 1
    up = min(after, eta * math.sqrt(after**2 * (s**2 - after**2) / s**2))
    down = math.sqrt(after**2 - up**2)
    return x + (x - D) / s * (down - s) + up * noise


def euler_ancestral_flow(eta: float, ends: Ends, x: Tensor, D: Tensor, noise: Tensor) -> Tensor:
    s, after = ends.sigma, ends.sigma_next
    down = after * (1 + (after / s - 1) * eta)
    alpha, alpha_down = 1 - after, 1 - down
    up = math.sqrt(after**2 - down**2 * alpha**2 / alpha_down**2)
    x = down / s * x + (1 - down / s) * D
    return alpha / alpha_down * x + up * noise


def flow_grpo(eta: float, ends: Ends, x: Tensor, D: Tensor, noise: Tensor) -> Tensor:
    """Not a row: Euler-Maruyama on the SDE of Flow-GRPO, whose noise does not add up."""
    s, dt = ends.sigma, ends.sigma_next - ends.sigma
    g, v = eta * math.sqrt(s / (1 - s)), (x - D) / s
    drift = v * (1 + g**2 / (2 * s) * (1 - s)) * dt + x * g**2 / (2 * s) * dt
    return x + drift + g * math.sqrt(-dt) * noise


# --- classes of diffusers -------------------------------------------------------------------------


def drawn(noise: Tensor) -> torch.Generator:
    """A generator that gives this noise, the one of every row."""
    return torch.Generator().manual_seed(0)


def ddim(eta: float, ends: Ends, x: Tensor, D: Tensor, noise: Tensor) -> Tensor:
    from diffusers import DDIMScheduler

    one = DDIMScheduler(trained_betas=BETAS.numpy(), clip_sample=False, set_alpha_to_one=False)
    one.alphas_cumprod, step = CUMULATED, timestep(ends)  # in float64
    one.num_inference_steps = 50  # the step before is 20 trained times before
    return one.step(predicted(ends, x, D), step, x, eta=eta, generator=drawn(noise)).prev_sample


def ddpm(ends: Ends, x: Tensor, D: Tensor, noise: Tensor) -> Tensor:
    from diffusers import DDPMScheduler

    one = DDPMScheduler(trained_betas=BETAS.numpy(), clip_sample=False)
    one.set_timesteps(50)
    one.alphas_cumprod = CUMULATED
    eps = predicted(ends, x, D)
    return one.step(eps, timestep(ends), x, generator=drawn(noise)).prev_sample


def predicted(ends: Ends, x: Tensor, D: Tensor) -> Tensor:
    return (x - ends.alpha * D) / ends.sigma


def timestep(ends: Ends) -> int:
    return int((CUMULATED - ends.alpha**2).abs().argmin())


def flow_scheduler(name: str, ends: Ends, x: Tensor, D: Tensor, noise: Tensor) -> Tensor:
    import diffusers

    s, after = ends.sigma, ends.sigma_next
    kind = getattr(diffusers, name)
    one: Any = kind(stochastic_sampling=True) if "Euler" in name and "LTX" not in name else kind()
    one.set_timesteps(sigmas=[s, after, 0.0]) if "LTX" in name else one.set_timesteps(1)
    one.sigmas = torch.tensor([s, after], dtype=torch.float64)
    one.timesteps = one.sigmas * 1000
    velocity = (x - D) / s
    given = {"generator": drawn(noise), "return_dict": False}
    return one.step(velocity, one.timesteps[0], x, **given)[0]


ROWS = [
    Row("DDIM(η), diffusers' `DDIMScheduler`", "arXiv 2010.02502", TABLE, "ddim:0.6",
        partial(ddim, 0.6)),
    Row("DDPM, diffusers' `DDPMScheduler`", "arXiv 2006.11239", TABLE, "ddpm", ddpm),
    Row("ancestral Euler (k-diffusion), η = 1", "arXiv 2206.00364, k-diffusion", EDM, "ancestral",
        partial(euler_ancestral, 1.0)),
    Row("ancestral Euler (k-diffusion), η = 0.5", "k-diffusion", EDM, "ancestral:0.5",
        partial(euler_ancestral, 0.5)),
    Row("ancestral Euler for flows (ComfyUI), η = 0.5", "ComfyUI", LINEAR, "ancestral:0.5",
        partial(euler_ancestral_flow, 0.5)),
    Row("the same, diffusers' `LTXEulerAncestralRFScheduler`, η = 1", "diffusers", LINEAR,
        "ancestral", partial(flow_scheduler, "LTXEulerAncestralRFScheduler"), single=True),
    Row("`FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)`", "diffusers", LINEAR,
        "renoise", partial(flow_scheduler, "FlowMatchEulerDiscreteScheduler"), single=True),
    Row("`FlowMatchLCMScheduler`: consistency sampling", "arXiv 2303.01469, diffusers", LINEAR,
        "renoise", partial(flow_scheduler, "FlowMatchLCMScheduler")),
    Row("Flow-CPS, η = 0.7", "arXiv 2509.05952", LINEAR, "cps:0.7", partial(flow_cps, 0.7)),
    Row("Precise, η = 1: Flow-GRPO's SDE with D held, solved", "arXiv 2605.23522", LINEAR,
        "precise:1", partial(frozen_mean, 1.0)),
    Row("SDE-DPM-Solver++(1), η = 0.5", "arXiv 2211.01095, k-diffusion", LINEAR, "precise:1",
        partial(dpm_solver_sde, 0.5)),
    Row("SDE-DPM-Solver++(1), η = 1", "arXiv 2211.01095", LINEAR, "ddpm",
        partial(dpm_solver_sde, 1.0)),
]  # fmt: skip
"""η of SDE-DPM-Solver++ is η²/2 of Precise: both are DDPM at ρ = a/a'."""


def noise_left(step: Step, ends: Ends) -> float:
    """Standard deviation of the noise after a step on a point mass at 0, where σ' is right."""
    generator = torch.Generator().manual_seed(1)
    x, noise = torch.randn(2, 200_000, generator=generator, dtype=torch.float64)
    return float(step(ends, ends.sigma * x, torch.zeros_like(x), noise).std())


def report() -> Iterator[str]:
    yield "| sampler | from | `rho`, with `steps=1` | on | largest difference |"
    yield "|-|-|-|-|-|"
    for row in ROWS:
        worst = row.worst()
        yield f"| {row.name} | {row.source} | `{row.rho}` | {row.path.name} | {worst:.0e} |"
    ends = Ends.of(LINEAR, 0.1, 0.3)
    left = noise_left(partial(flow_grpo, 0.7), ends)
    yield ""
    yield (
        "Flow-GRPO's step (noise level 0.7, its default) on a point mass, from t = 0.1 to 0.3, "
        f"leaves noise of standard deviation {left:.2f} where {ends.sigma_next:.2f} is right."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="a page, whose marked part is written anew")
    given = parser.parse_args()
    text = "\n".join(report())
    print(text)
    if given.out is not None:
        write_between_marks(given.out, COMMAND, text)


if __name__ == "__main__":
    main()
