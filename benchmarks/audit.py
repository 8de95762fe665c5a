"""Audits of the stochastic samplers of diffusers, and of the audit itself.

    python -m benchmarks.audit [--out docs/audit.md]              the table of schedulers
    python -m benchmarks.audit --rates 10 [--out docs/audit.md]   alarms over seeds
    python -m benchmarks.audit --lost [--out docs/audit.md]       what a wrong start loses

FAULTY are samplers with a known fault each, RIGHT twenty without; tests/research/test_audit.py
audits them all.
"""

from __future__ import annotations

import argparse
import logging
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from glass_flows.errors import InvalidArgument
from glass_flows.measures import share
from glass_flows.plans import Sampler
from glass_flows.research.audit import audit
from glass_flows.research.audit.figures import ratio_of
from glass_flows.sampling import sample

MARKERS = ("<!-- begin: python -m benchmarks.audit{} -->", "<!-- end -->")
QUICK = {"samples": 2_000, "transitions": (4, 8, 16, 32)}
"""The size at which the rates are measured; that of the tests is smaller."""


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
RIGHT: dict[str, Any] = {
    "DDPM": partial(glass, "ddpm", 1),
    "DDIM(0.5)": partial(glass, "ddim:0.5", 1),
    "Precise(1)": partial(glass, "precise:1", 1),
    "ancestral Euler for flows": partial(glass, "ancestral", 1),
    "ancestral Euler for flows, η = 0.5": partial(glass, "ancestral:0.5", 1),
    "Flow-GRPO's SDE": partial(glass, None, 1, solver="euler-maruyama"),
    "GLASS, ρ = 0.4, M = 4": partial(glass, 0.4, 4),
    "GLASS, ρ = 0, M = 4": partial(glass, 0.0, 4),
    "GLASS, ρ = -0.3, M = 5": partial(glass, -0.3, 5),
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


SCHEDULERS: list[tuple[str, dict[str, Any]]] = [
    ("DDPMScheduler", {}),
    ("DDPMScheduler", {"variance_type": "fixed_large"}),
    ("DDIMScheduler", {"eta": 1.0}),
    ("DDIMScheduler", {"eta": 1.0, "set_alpha_to_one": False, "beta_schedule": "scaled_linear",
                       "beta_start": 0.00085, "beta_end": 0.012}),
    ("EulerDiscreteScheduler", {"s_churn": 10.0}),
    ("EulerAncestralDiscreteScheduler", {}),
    ("KDPM2AncestralDiscreteScheduler", {}),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "solver_order": 1}),
    ("DPMSolverSinglestepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    ("DPMSolverSDEScheduler", {}),
    ("SASolverScheduler", {}),
    ("LCMScheduler", {"original_inference_steps": 1000}),
    ("TCDScheduler", {"original_inference_steps": 1000}),
    ("EDMEulerScheduler", {"s_churn": 10.0}),
    ("EDMDPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    ("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}),
    ("FlowMatchHeunDiscreteScheduler", {"s_churn": 10.0}),
    ("FlowMatchLCMScheduler", {}),
    ("LTXEulerAncestralRFScheduler", {}),
    ("GlassScheduler", {"rho": 0.4, "steps": 4}),
]  # fmt: skip
"""Those of diffusers that draw noise, and ours; with what makes them."""


# --- pages ----------------------------------------------------------------------------------------


def table_of_schedulers() -> Iterator[str]:
    yield "| scheduler | evals | s=0.2, K = 4, 16, 64 | s=1, K = 4, 16, 64 | left | audited as |"
    yield "|-|-|-|-|-|-|"
    lines = []
    for name, options in SCHEDULERS:
        label = f"`{name}`" + "".join(f", {key}={value}" for key, value in options.items())
        try:
            found = audit(name, options=options, samples=10_000)
        except InvalidArgument as error:
            lines.append(f"- {label}: not audited here; {error}")
            continue
        rows = {row.transitions: row for row in found.rows}
        stds = [" ".join(f"{ratio_of(rows[k].figures[f'std {s}'].value):.2f}" for k in (4, 16, 64))
                for s in ("0.2", "1")]  # fmt: skip
        last = rows[64]
        kind = "right" if found.right else ", ".join(f"**{f.kind}**" for f in found.faults)
        left = last.figures["noise left"].value
        yield f"| {label} | {last.evaluations:g} | {' | '.join(stds)} | {left:.3f} | {kind} |"
        lines += [f"- {label}: {line}" for line in found.verdict if not found.right]
    yield ""
    yield from lines


def table_of_rates(seeds: int) -> Iterator[str]:
    """Of quick audits: how often the first verdict is right, over seeds."""
    yield "| sampler | audits | named rightly |"
    yield "|-|-|-|"
    for name, (function, kind) in FAULTY.items():
        found = [audit(function, seed=seed, **QUICK) for seed in range(seeds)]
        named = sum(bool(one.faults) and one.faults[0].kind == kind for one in found)
        yield f"| {name} | {seeds} | {named} |"
    alarms = []
    for given in RIGHT.values():
        function, options = given if isinstance(given, tuple) else (given, {})
        for seed in range(seeds):
            alarms.append(not audit(function, options=options, seed=seed, **QUICK).right)
    high = share(np.array(alarms, dtype=float)).interval[1]
    yield f"| the {len(RIGHT)} right ones | {len(alarms)} | {len(alarms) - sum(alarms)} |"
    yield ""
    yield (
        f"{sum(alarms)} false alarms in {len(alarms)} audits (95 %: below {100 * high:.1f} %), of "
        f"{QUICK['samples']:,} samples, K = {', '.join(map(str, QUICK['transitions']))}."
    )


def table_of_what_is_lost() -> Iterator[str]:
    """Standard deviations of the sampler whose transitions begin with noise."""
    found = audit(begins_with_noise)
    yield "| K | s=0.2 | s=0.5 | s=1 | s=1.5 |"
    yield "|-|-|-|-|-|"
    for line in found.table[1]:
        yield f"| {line[0]} | {' | '.join(line[3:7])} |"
    yield ""
    yield f"> {found.verdict[0]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rates", type=int, default=0, help="seeds; not the table of schedulers")
    parser.add_argument("--lost", action="store_true", help="not the table of schedulers")
    parser.add_argument("--out", type=Path, help="a page, whose marked part is written anew")
    given = parser.parse_args()
    logging.disable(logging.WARNING)  # of schedulers, on their own options
    part, lines = "", table_of_schedulers()
    if given.rates:
        part, lines = " --rates", table_of_rates(given.rates)
    elif given.lost:
        part, lines = " --lost", table_of_what_is_lost()
    text = "\n".join(lines)
    print(text)
    if given.out is not None:
        write(given.out, MARKERS[0].format(part), text)


def write(page: Path, begin: str, text: str) -> None:
    before, _, rest = page.read_text(encoding="utf-8").partition(begin)
    after = rest.partition(MARKERS[1])[2]
    page.write_text(f"{before}{begin}\n\n{text}\n\n{MARKERS[1]}{after}", "utf-8")


if __name__ == "__main__":
    main()
