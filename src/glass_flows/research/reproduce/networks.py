"""The experiments on how well a learned network is sampled: posteriors, samples, trained times."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...denoisers import Denoiser
from ...jobs.costs import Alive
from ...jobs.models import Digits
from ...measures import diversity, half_samples, mean
from ...paths import DiscreteDiffusion, Linear
from ...plans import EulerMaruyama, Paper, Rho, Sampler
from ...sampling import sample
from ...training import Loss, TrainingTask, fit
from ...worlds.digits import IMAGE, DigitsNet, digits_images
from ..digits import frechet, judge_features, real_features
from .base import Cell, Column, Experiment, Found, Result, Scale, digits_of
from .exact import at_time, draw_posterior, plane_mixture
from .plots import lines, of

_PATH = Linear()
_METHODS = ("GLASS", "GLASS, Algorithm 1", "DDPM", "Euler-Maruyama")


def quality(model: Digits, images: Tensor) -> Found:
    """Fréchet distance to the real digits and diversity, in the judge's features."""
    found = judge_features(model, images)
    return {
        "Fréchet": frechet(found, real_features(model), rounds=30),
        "diversity": half_samples(found, diversity, rounds=10),
    }


# ------------------------------------------------------------------------------------- posterior


def _posterior_cells(scale: Scale, folder: Path) -> list[Cell]:
    return [
        Cell(
            {"model": model, "t": t, "method": method, "evaluations": m},
            partial(work, scale, t, method, m),
        )
        for model, work in (("digits network", _posterior), ("mixture", _exact_posterior))
        for t in scale.of((0.2, 0.4, 0.6), (0.4,))
        for method in _METHODS
        for m in scale.of((1, 2, 3, 4, 6, 10, 20, 50), (1, 4))
    ]


def _posterior(scale: Scale, t: float, method: str, evaluations: int) -> Found:
    """Posterior draws given noised real digits are real digits again, if they are right."""
    generator = torch.Generator().manual_seed(scale.seed)
    z = digits_images()[torch.randint(1797, (scale.of(4_000, 300),), generator=generator)]
    x = at_time(z, t, scale.seed + 1)
    model = digits_of(scale)
    drawn = draw_posterior(method, model.denoiser, x, t, evaluations, scale.seed + 2)
    return {"distance": quality(model, drawn)["Fréchet"]}


def _exact_posterior(scale: Scale, t: float, method: str, evaluations: int) -> Found:
    """Energy distance of draws to exact ones, in the plane, averaged over starting points."""
    mixture, draws = plane_mixture(), scale.of(2_000, 500)
    starts = at_time(mixture.sample(scale.of(12, 2), seed=scale.seed), t, scale.seed + 1)
    denoiser, apart = mixture.denoiser(_PATH), []
    for i, start in enumerate(starts):
        x = start.expand(draws, -1).clone()
        drawn = draw_posterior(method, denoiser, x, t, evaluations, scale.seed + 2 + i)
        exact = mixture.posterior_sample(_PATH, x, t, seed=scale.seed + 90 + i)
        apart.append(_energy_distance(drawn, exact))
    return {"distance": mean(np.array(apart))}


def _energy_distance(a: Tensor, b: Tensor) -> float:
    """2 E|X - Y| - E|X - X'| - E|Y - Y'|, without bias (Székely & Rizzo 2013)."""

    def inner(x: Tensor) -> Tensor:
        return torch.cdist(x, x).sum() / (len(x) * (len(x) - 1))

    return float(2 * torch.cdist(a, b).mean() - inner(a) - inner(b))


def _draw_posterior_plot(results: list[Result], figure: Any) -> None:
    axes = figure.subplots(1, 2)
    names = {"digits network": "Fréchet distance", "mixture": "energy distance to exact draws"}
    for axis, (model, name) in zip(axes, names.items()):
        own, look = of(results, model=model, t=0.4), {"title": f"{model}, t = 0.4"}
        look |= {"xscale": "log", "yscale": "log", "ylabel": name}
        lines(axis, own, "evaluations", "distance", "method", **look)
    axes[0].legend(fontsize=7)


POSTERIOR = Experiment(
    name="posterior",
    cells=_posterior_cells,
    columns=(Column("distance", "distance"),),
    across="evaluations",
    draw=_draw_posterior_plot,
)


# -------------------------------------------------------------------------------------- sampling

_RHOS: tuple[Rho, ...] = (-0.4, 0.0, 0.2, 0.4, 0.6, 0.8, 1.0, "ddpm")
_SAMPLERS: tuple[tuple[str, Sampler], ...] = (
    ("ODE", Sampler.ode(50)),
    ("DDPM", Sampler(50, 1, "ddpm")),
    ("Euler-Maruyama, η = 0.7", Sampler(50, 1, None, solver=EulerMaruyama(0.7))),
    ("Euler-Maruyama, η = √2", Sampler(50, 1, None, solver=EulerMaruyama(math.sqrt(2)))),
    *((f"GLASS, ρ = {rho}", Sampler(5, 10, rho)) for rho in _RHOS),
    *(
        (f"GLASS, Algorithm 1, ρ = {rho}", Sampler(5, 10, rho, solver=Paper()))
        for rho in (0.0, 0.4, 0.8)
    ),
)


def _sampling_cells(scale: Scale, folder: Path) -> list[Cell]:
    listed = scale.of(_SAMPLERS, (*_SAMPLERS[:3], _SAMPLERS[7]))
    return [Cell({"sampler": name}, partial(_sampling, scale, given)) for name, given in listed]


def _sampling(scale: Scale, sampler: Sampler) -> Found:
    """Unconditional digits from 50 evaluations."""
    model, count = digits_of(scale), scale.of(4_000, 300)
    denoiser, before = model.denoiser, time.perf_counter()
    drawn = sample(denoiser, (count, *IMAGE), sampler, seed=scale.seed, progress=False)
    seconds = time.perf_counter() - before
    with Alive() as memory:
        sample(denoiser, (100, *IMAGE), sampler, seed=scale.seed, progress=False)
    return {**quality(model, drawn), "seconds": seconds, "memory": memory.most / 100}


def _draw_sampling(results: list[Result], figure: Any) -> None:
    axis, names = figure.subplots(), [str(one["sampler"]) for one in results]
    values = [one["Fréchet"] for one in results]
    errors = [one.error("Fréchet") for one in results]
    axis.errorbar(values, names, xerr=errors, fmt="o", capsize=2)
    axis.invert_yaxis()
    axis.set(xlabel="Fréchet distance", xscale="log")


SAMPLING = Experiment(
    name="sampling",
    cells=_sampling_cells,
    columns=(
        Column("Fréchet", "Fréchet distance", "{:.2f}"),
        Column("diversity", "diversity", "{:.2f}"),
        Column("seconds", "seconds", "{:.1f}"),
        Column("memory", "memory, kB per image", "{:.1f}", 1e-3),
    ),
    draw=_draw_sampling,
)


# -------------------------------------------------------------------------------------- discrete

_TIMESTEPS = (20, 1000)


class _Between(DiscreteDiffusion):
    """The same noise levels, queried between the trained timesteps too."""

    @property
    def trained_times(self) -> None:  # type: ignore[override]
        return None


def _schedule(timesteps: int) -> list[float]:
    """ᾱ of Stable Diffusion's schedule, at so many timesteps of its thousand."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    every = 1000 // timesteps
    found: list[float] = torch.cumprod(1 - betas, 0)[every - 1 :: every].tolist()
    return found


def _discrete_cells(scale: Scale, folder: Path) -> list[Cell]:
    grids = scale.of(((1, 12), (3, 4), (4, 5), (5, 10)), ((3, 4),))
    return [
        Cell(
            {"timesteps": timesteps, "queries": queries, "K": k, "M": m},
            partial(_discrete, scale, folder, timesteps, queries, k, m),
        )
        for timesteps in scale.of(_TIMESTEPS, _TIMESTEPS[:1])
        for k, m in grids
        if k * m <= timesteps
        for queries in ("trained", "interpolated", "nearest")
    ]


def _discrete(
    scale: Scale, folder: Path, timesteps: int, queries: str, transitions: int, steps: int
) -> Found:
    network = _trained(scale, folder, timesteps)
    table = _schedule(timesteps)
    path = DiscreteDiffusion(table) if queries == "trained" else _Between(table)

    def asked(x: Tensor, k: Tensor) -> Tensor:
        if queries == "nearest":
            k = k.round().clamp(0, timesteps - 1)
        out: Tensor = network(x, (k + 1) / timesteps)
        return out

    denoiser = Denoiser(asked, path, prediction="epsilon", time="timestep")
    shape, sampler = (scale.of(4_000, 300), *IMAGE), Sampler(transitions, steps, 0.4)
    drawn = sample(denoiser, shape, sampler, seed=scale.seed, progress=False)
    return quality(digits_of(scale), drawn)


@lru_cache(maxsize=2)
def _trained(scale: Scale, folder: Path, timesteps: int) -> nn.Module:
    """A digits network that predicts ε at these timesteps and no others."""
    steps = scale.of(1_000, 120)
    loss = _epsilon_loss(_schedule(timesteps))
    job = TrainingTask("discrete-network", DigitsNet, loss, steps, scale.seed, 2e-3)
    settings = {"steps": steps, "timesteps": timesteps, "seed": scale.seed}
    name = f"network-{timesteps}{'-quick' if scale.quick else ''}.safetensors"
    return fit(job, folder / name, settings, 100, False)


def _epsilon_loss(alphas_cumprod: Sequence[float]) -> Loss:
    """E |ε(x_k, k) - ε|² at x_k = √ᾱ_k z + √(1 - ᾱ_k) ε, k uniform (Ho et al. 2020)."""
    images, table = digits_images(), torch.tensor(alphas_cumprod, dtype=torch.float32)

    def loss(model: nn.Module, generator: torch.Generator) -> Tensor:
        z = images[torch.randint(len(images), (512,), generator=generator)]
        z = z + (torch.rand(z.shape, generator=generator) - 0.5) / 8  # fill the grey levels
        noise = torch.randn(z.shape, generator=generator)
        k = torch.randint(len(table), (len(z),), generator=generator)
        kept = table[k][:, None, None, None]
        x = kept.sqrt() * z + (1 - kept).sqrt() * noise
        return F.mse_loss(model(x, (k + 1) / len(table)), noise)

    return loss


def _draw_discrete(results: list[Result], figure: Any) -> None:
    numbers = list(dict.fromkeys(r["timesteps"] for r in results))
    for axis, timesteps in zip(figure.subplots(1, len(numbers), squeeze=False)[0], numbers):
        own = [
            Result({**r.settings, "evaluations": r["K"] * r["M"]}, r.values)
            for r in of(results, timesteps=timesteps)
            if r["K"] > 1
        ]
        look = {"title": f"{timesteps} trained timesteps", "yscale": "log"}
        lines(axis, own, "evaluations", "Fréchet", "queries", ylabel="Fréchet distance", **look)
        axis.legend(fontsize=7)


DISCRETE = Experiment(
    name="discrete",
    cells=_discrete_cells,
    columns=(Column("Fréchet", "Fréchet distance", "{:.2f}"),),
    across="queries",
    draw=_draw_discrete,
)
