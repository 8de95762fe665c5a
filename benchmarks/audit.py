"""Audits of the stochastic samplers of diffusers, and of the audit itself.

    python -m benchmarks.audit [--out docs/audit.md]          the table of schedulers
    python -m benchmarks.audit --rates 40 [--out ...]         alarms over seeds, right and wrong ones

FAULTY are six samplers with a known fault each, RIGHT twenty without; tests/research/test_audit.py
audits them all.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glass_flows.noise import KeyedNoise
from glass_flows.paths import Linear
from glass_flows.plans import Sampler
from glass_flows.research.audit import Audit, audit
from glass_flows.sampling import sample

MARKERS = ("<!-- begin: python -m benchmarks.audit{} -->", "<!-- end -->")
QUICK = {"samples": 2_000, "steps": (4, 8, 16, 32)}
"""The size at which the rates are measured, and that of the tests."""
LINEAR = Linear()


# --- right ones -----------------------------------------------------------------------------------


def glass(rho: str | float | None, M: int, denoiser: Any, shape: Any, steps: int, generator: Any,
          solver: str = "default") -> Tensor:  # fmt: skip
    """K transitions of M evaluations each, ours."""
    seed = int(torch.randint(2**31, (), generator=generator))
    sampler = Sampler(steps, M, rho, solver=solver)
    given = {"seed": seed, "dtype": torch.float64, "randomness": "stream"}
    return sample(denoiser, shape, sampler, **given)


def euler(denoiser: Any, shape: Any, steps: int, generator: Any) -> Tensor:
    """The ODE, dx/dt = (D - x)/(1 - t)."""
    x = normal(shape, generator)
    for k in range(steps):
        t = k / steps
        x = x + (denoiser(x, t) - x) / (1 - t) / steps
    return x


def heun(denoiser: Any, shape: Any, steps: int, generator: Any) -> Tensor:
    x = normal(shape, generator)
    for k in range(steps):
        t, after = k / steps, (k + 1) / steps
        slope = (denoiser(x, t) - x) / (1 - t)
        ahead = x + slope / steps
        if after < 1:
            slope = (slope + (denoiser(ahead, after) - ahead) / (1 - after)) / 2
        x = x + slope / steps
    return x


def in_parts(denoiser: Any, shape: Any, steps: int, generator: Any) -> Tensor:
    """DDPM, asking about a third of the samples at a time."""
    x = normal(shape, generator)
    for t, after in times(steps):
        D = torch.cat([denoiser(part, t) for part in x.chunk(3)])
        x = move(x, D, t, after, ddpm(t, after), ddpm(t, after), normal(shape, generator))
    return x


def normal(shape: Any, generator: Any) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def times(steps: int) -> list[tuple[float, float]]:
    return [(k / steps, (k + 1) / steps) for k in range(steps)]


def ddpm(t: float, after: float) -> float:
    return 0.0 if after == 1 else t / (1 - t) * (1 - after) / after


def move(x: Tensor, D: Tensor, t: float, after: float, kept: float, fits: float, noise: Tensor
         ) -> Tensor:  # fmt: skip
    """γ x + ᾱ D + σ̄ ε: γ of the ρ `kept`, σ̄ of the ρ that it `fits`."""
    gamma = kept * (1 - after) / (1 - t)
    return gamma * x + (after - gamma * t) * D + (1 - after) * math.sqrt(1 - fits**2) * noise


# --- faulty ones ----------------------------------------------------------------------------------


def begins_with_noise(denoiser: Any, shape: Any, steps: int, generator: Any, M: int = 8) -> Tensor:
    """Transitions at ρ = 0.4 by Algorithm 1, whose inner state begins as if t' were 1.

    Right is γ x + ε at s = 0; this begins with ε.
    """
    x = normal(shape, generator)
    for t, after in times(steps):
        gamma = 0.4 * (1 - after) / (1 - t) if t > 0 else 0.0
        signal, end = after - gamma * t, (1 - after) * math.sqrt(1 - 0.4**2)
        state = normal(shape, generator)
        for j in range(M):
            s = j / M
            inner, spread = s * signal, (1 - s) + s * end
            q, a = inner / spread, t / (1 - t)
            level = math.hypot(q, a)
            y = (a * x / (1 - t) + q * (state - gamma * x) / spread) / max(level, 1e-12)
            told = level / (1 + level)
            D = denoiser(y * (1 - told) if level else x, told)
            rate = (end - 1) / spread
            state = state + (rate * (state - gamma * x - inner * D) + signal * D) / M
        x = state
    return x


def noise_left(denoiser: Any, shape: Any, steps: int, generator: Any) -> Tensor:
    """DDPM that stops at t = 0.94 and takes that for data."""
    x = normal(shape, generator)
    for k in range(steps):
        t, after = 0.94 * k / steps, 0.94 * (k + 1) / steps
        rho = ddpm(t, after)
        x = move(x, denoiser(x, t), t, after, rho, rho, normal(shape, generator))
    return x / 0.94


def wrong_rho(denoiser: Any, shape: Any, steps: int, generator: Any) -> Tensor:
    """Keeps what DDPM keeps, and adds the noise of twice its variance share."""
    x = normal(shape, generator)
    for t, after in times(steps):
        rho = ddpm(t, after)
        fits = math.sqrt(max(0.0, 1 - 2 * (1 - rho**2)))
        x = move(x, denoiser(x, t), t, after, rho, fits, normal(shape, generator))
    return x


def stale(denoiser: Any, shape: Any, steps: int, generator: Any) -> Tensor:
    """DDPM with the network's answer of the step before."""
    x, D = normal(shape, generator), None
    for t, after in times(steps):
        rho, newest = ddpm(t, after), denoiser(x, t)
        D, used = newest, newest if D is None else D
        x = move(x, used, t, after, rho, rho, normal(shape, generator))
    return x


def double_shift(denoiser: Any, shape: Any, steps: int, generator: Any) -> Tensor:
    """DDPM on shifted times (shift 3), the network being told times that are shifted again."""
    x = normal(shape, generator)
    for t, after in times(steps):
        t, after = shifted(t), shifted(after)
        rho = ddpm(t, after)
        D = denoiser(x, shifted(t))
        x = move(x, D, t, after, rho, rho, normal(shape, generator))
    return x


def shifted(t: float) -> float:
    return t / (t + 3 * (1 - t))


def one_noise(denoiser: Any, shape: Any, steps: int, generator: Any) -> Tensor:
    """DDPM whose steps all add the same noise, as from a generator that is seeded at every step."""
    x, noise = normal(shape, generator), normal(shape, generator)
    for t, after in times(steps):
        rho = ddpm(t, after)
        x = move(x, denoiser(x, t), t, after, rho, rho, noise)
    return x


def shared_noise(denoiser: Any, shape: Any, steps: int, generator: Any) -> Tensor:
    """DDPM whose noise is drawn for one sample and added to all."""
    x = normal(shape, generator)
    for t, after in times(steps):
        rho = ddpm(t, after)
        noise = normal((1, *shape[1:]), generator).expand(shape)
        x = move(x, denoiser(x, t), t, after, rho, rho, noise)
    return x


FAULTY: dict[str, tuple[Callable[..., Tensor], str]] = {
    "variance lost at the start": (begins_with_noise, "lost"),
    "residual noise": (noise_left, "left"),
    "a wrong ρ": (wrong_rho, "noise"),
    "stale D": (stale, "stale"),
    "double shift": (double_shift, "time"),
    "noise reused over steps": (one_noise, "reused"),
    "noise reused over samples": (shared_noise, "dependent"),
}
"""By name: the sampler, and what an audit has to say of it."""
RIGHT: dict[str, Callable[..., Tensor] | tuple[str, dict[str, Any]]] = {
    "DDPM": partial(glass, "ddpm", 1),
    "DDIM(0.5)": partial(glass, "ddim:0.5", 1),
    "Precise(1)": partial(glass, "precise:1", 1),
    "ancestral Euler for flows": partial(glass, "ancestral", 1),
    "ancestral Euler for flows, η = 0.5": partial(glass, "ancestral:0.5", 1),
    "Flow-GRPO's SDE": partial(glass, None, 1, solver="euler-maruyama"),
    "GLASS, ρ = 0.4, M = 4": partial(glass, 0.4, 4),
    "GLASS, ρ = 0, M = 6": partial(glass, 0.0, 6),
    "GLASS, ρ = -0.3, M = 6": partial(glass, -0.3, 6),
    "GLASS, DDPM, M = 2": partial(glass, "ddpm", 2),
    "Euler": euler,
    "Heun": heun,
    "DDPM, asked in parts": in_parts,
    "DDPMScheduler": ("DDPMScheduler", {}),
    "DDIMScheduler, η = 1": ("DDIMScheduler", {"eta": 1.0}),
    "EulerAncestralDiscreteScheduler": ("EulerAncestralDiscreteScheduler", {}),
    "KDPM2AncestralDiscreteScheduler": ("KDPM2AncestralDiscreteScheduler", {}),
    "DPMSolverMultistepScheduler, SDE": (
        "DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}
    ),
    "FlowMatchEulerDiscreteScheduler": ("FlowMatchEulerDiscreteScheduler", {}),
    "GlassScheduler, ρ = 0.4, M = 4": ("GlassScheduler", {"rho": 0.4, "steps": 4}),
}  # fmt: skip
