"""The experiments that have exact answers: transitions, posteriors and values of mixtures."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...denoisers import DenoiserLike
from ...errors import PlanError
from ...execute import run
from ...jobs.models import Digits
from ...measures import Measure, mean
from ...noise import noise_source
from ...paths import Linear
from ...plans import EulerMaruyama, Sampler
from ...plans.kernels import Ends, resolve_rho
from ...rewards import ClassReward, evaluate
from ...sampling import posterior, transition
from ...worlds.digits import digits_images, digits_labels
from ...worlds.mixtures import GaussianMixture, digits_mixture
from .base import Cell, Column, Experiment, Found, Result, Scale, Value, digits_of
from .plots import lines, of

_PATH = Linear()
_END = "t'"


@lru_cache(maxsize=1)
def plane_mixture() -> GaussianMixture:
    """Sixteen narrow modes on half the fields of a checkerboard of 4×8, of unit scale; float64."""
    fields = [(i, j) for i in range(4) for j in range(8) if (i + j) % 2 == 0]
    means = torch.tensor(fields, dtype=torch.float64)
    means = means - means.mean(0)
    means = means / means.square().mean().sqrt()
    return GaussianMixture(means, 0.08)


def at_time(z: Tensor, t: float, seed: int) -> Tensor:
    """x_t of clean samples z."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(z.shape, generator=generator, dtype=z.dtype)
    return _PATH.alpha(t) * z + _PATH.sigma(t) * noise


def draw_posterior(
    method: str, denoiser: DenoiserLike, x: Tensor, t: float, evaluations: int, seed: int
) -> Tensor:
    """One draw of p(z | x_t) per row, in so many network evaluations, by a method of the paper."""
    if method in ("GLASS", "GLASS, Algorithm 1"):
        solver = "default" if method == "GLASS" else "paper"
        return posterior(denoiser, x, t, samples=1, steps=evaluations, solver=solver, seed=seed)[0]
    times = [t + (1 - t) * i / evaluations for i in range(evaluations)] + [1.0]
    sampler = Sampler(evaluations, 1, "ddpm", times=times)
    if method == "Euler-Maruyama":
        # Of all SDEs that keep the marginals only this one draws from the posterior: the time
        # reversal of the noising diffusion.
        sampler = replace(sampler, rho=None, solver=EulerMaruyama(noise_level=math.sqrt(2)))
    with torch.no_grad():
        return run(sampler.plan(denoiser.path), denoiser, x, noise_source(seed, None))


# ---------------------------------------------------------------------------------------- kernel


_MOMENTS = ("mean", "covariance", "correlation")


def _kernel_cells(scale: Scale, folder: Path) -> list[Cell]:
    spans = ((0.05, 0.3), (0.3, 0.6), (0.6, 1.0))
    rhos: Sequence[Value] = (-0.9, -0.4, 0.0, 0.4, 0.9, "ddpm")
    return [
        Cell({"t": t, "t'": t_next, "rho": rho, "M": m}, partial(_kernel, scale, t, t_next, rho, m))
        for t, t_next in scale.of(spans, spans[1:2])
        for rho in scale.of(rhos, (0.4,))
        for m in scale.of((1, 2, 4, 8, 16), (1, 4))
    ]


def _kernel(scale: Scale, t: float, t_next: float, rho: Value, steps: int) -> Found:
    """Moments of x_t' given eight different x_t, and its correlation with x_t over all of them."""
    mixture, n = plane_mixture(), scale.of(20_000, 2_000)
    denoiser = mixture.denoiser(_PATH)
    starts = at_time(mixture.sample(8, seed=scale.seed), t, scale.seed + 1)
    centre, spread = [], []
    for i, start in enumerate(starts):
        x = start.expand(n, -1).clone()
        drawn = transition(denoiser, x, t, t_next, rho=rho, steps=steps, seed=scale.seed + i)
        many = start.expand(10 * n, -1).clone()
        exact = mixture.transition_sample(_PATH, many, t, t_next, rho, seed=scale.seed + 50 + i)
        wide = exact.var(0).sum().sqrt()
        centre.append(float((drawn.mean(0) - exact.mean(0)).norm() / wide))
        spread.append(float((torch.cov(drawn.T) - torch.cov(exact.T)).norm() / wide**2))
    z = mixture.sample(n, seed=scale.seed + 100)
    x = at_time(z, t, scale.seed + 101)
    x_next = transition(denoiser, x, t, t_next, rho=rho, steps=steps, seed=scale.seed + 102)
    return {
        "mean": mean(np.array(centre)),
        "covariance": mean(np.array(spread)),
        "correlation": Measure(
            _correlation(x, x_next) - _theory(mixture, t, t_next, rho), 1 / (2 * n) ** 0.5
        ),
    }


def _theory(mixture: GaussianMixture, t: float, t_next: float, rho: Value) -> float:
    """The correlation of x_t and x_t' of the same z and of noises of correlation ρ."""
    (alpha, sigma), (alpha_next, sigma_next) = (
        (_PATH.alpha(s), _PATH.sigma(s)) for s in (t, t_next)
    )
    noise = resolve_rho(rho, Ends.of(_PATH, t, t_next))
    z = float(mixture.covariance().diagonal().mean())
    shared = alpha * alpha_next * z + noise * sigma * sigma_next
    return shared / float(np.sqrt((alpha**2 * z + sigma**2) * (alpha_next**2 * z + sigma_next**2)))


def _correlation(x: Tensor, y: Tensor) -> float:
    x, y = x - x.mean(0), y - y.mean(0)
    return float((x * y).sum() / (x.square().sum() * y.square().sum()).sqrt())


def _draw_kernel(results: list[Result], figure: Any) -> None:
    axes = figure.subplots(1, 3)
    for axis, name in zip(axes, _MOMENTS):
        own = [
            Result({"M": m, "rho": rho}, {name: float(np.mean([abs(r[name]) for r in group]))})
            for rho in dict.fromkeys(r["rho"] for r in results)
            for m in dict.fromkeys(r["M"] for r in results)
            if (group := of(results, rho=rho, M=m))
        ]
        look = {"xscale": "log", "yscale": "log", "ylabel": f"error of the {name}"}
        lines(axis, own, "M", name, "rho", **look)
    axes[0].legend(title="rho", fontsize=7)


KERNEL = Experiment(
    name="kernel",
    cells=_kernel_cells,
    columns=tuple(Column(name, name) for name in _MOMENTS),
    draw=_draw_kernel,
)


# ---------------------------------------------------------------------------------------- values

_ESTIMATORS = (
    ("denoiser", 1, 1),
    ("GLASS", 2, 4),
    ("GLASS", 6, 4),
    ("GLASS", 24, 4),
    ("DDPM", 2, 4),
    ("DDPM", 6, 4),
    ("DDPM", 24, 4),
    ("DDPM", 3, 8),
    ("DDPM", 12, 8),
    ("GLASS, Algorithm 1", 6, 4),
    ("GLASS, Algorithm 1", 24, 4),
)


def _values_cells(scale: Scale, folder: Path) -> list[Cell]:
    return [
        Cell(
            {"model": model, "t": t, "estimate": name, "samples": n, "M": m, "evaluations": n * m},
            partial(work, scale, t, (name, n, m)),
        )
        for model, work in (("mixture", _exact_value), ("network", _network_value))
        for t in scale.of((0.3, 0.5, 0.7), (0.5,))
        for name, n, m in scale.of(_ESTIMATORS, (*_ESTIMATORS[:2], _ESTIMATORS[4]))
    ]


def _estimated(
    denoiser: DenoiserLike,
    log_tilt: Callable[[Tensor], Tensor],
    x: Tensor,
    t: float,
    method: str,
    samples: int,
    steps: int,
    seed: int,
) -> Tensor:
    """log E[exp(λ r(z)) | x_t] by the denoiser or by posterior samples, (B,)."""
    if method == "denoiser":
        with torch.no_grad():
            return log_tilt(denoiser(x, t))
    found = [
        log_tilt(draw_posterior(method, denoiser, x, t, steps, seed + 7919 * i))
        for i in range(samples)
    ]
    return torch.logsumexp(torch.stack(found), 0) - math.log(samples)


def _agreement(estimate: Tensor, truth: Tensor) -> Found:
    """Correlation, bias and root mean square error, over the particles."""
    difference = (estimate - truth).double().numpy()
    return {
        "correlation": float(torch.corrcoef(torch.stack([estimate, truth]))[0, 1]),
        "bias": mean(difference),
        "rmse": float(np.sqrt((difference**2).mean())),
        "spread": float(truth.std()),
    }


def _exact_value(scale: Scale, t: float, estimator: tuple[str, int, int]) -> Found:
    """A linear reward on a mixture over the digits, whose value is in closed form."""
    mixture, count = digits_mixture(0.2), scale.of(400, 50)
    images, labels = digits_images().double(), digits_labels()
    b = images[labels == 8].mean(0) - images.mean(0)
    b = 3.0 * b / torch.einsum("bchw,chw->b", images, b).std()  # λ r has standard deviation 3
    x = at_time(mixture.sample(count, seed=scale.seed), t, scale.seed + 1)

    def log_tilt(z: Tensor) -> Tensor:
        return torch.einsum("bchw,chw->b", z, b)

    denoiser, seed = mixture.denoiser(_PATH), scale.seed + 2
    estimate = _estimated(denoiser, log_tilt, x, t, *estimator, seed=seed)
    return _agreement(estimate, mixture.posterior_log_mean_exp(_PATH, x, t, b))


def _network_value(scale: Scale, t: float, estimator: tuple[str, int, int]) -> Found:
    """The digits' network and classifier; the truth are many posterior samples of many steps."""
    model, (x, truth) = digits_of(scale), _long_run(scale, t)
    reward, seed = _log_class(model), scale.seed + 2
    estimate = _estimated(model.denoiser, reward, x, t, *estimator, seed=seed)
    return _agreement(estimate, truth)


def _log_class(model: Digits) -> Callable[[Tensor], Tensor]:
    """λ r: the log-probability of an 8, λ = 1."""
    reward = ClassReward(model.classifiers["reward"], 8)
    return lambda z: evaluate(reward, z, "the value")


@lru_cache(maxsize=8)
def _long_run(scale: Scale, t: float) -> tuple[Tensor, Tensor]:
    """x_t of real digits, and their values from 400 posterior samples of 12 evaluations."""
    model, count, draws = digits_of(scale), scale.of(200, 20), scale.of(400, 40)
    generator = torch.Generator().manual_seed(scale.seed)
    z = digits_images()[torch.randperm(1797, generator=generator)[:count]]
    x = at_time(z, t, scale.seed + 1)
    log_tilt, seed = _log_class(model), scale.seed + 10**6
    truth = _estimated(model.denoiser, log_tilt, x, t, "GLASS", draws, 12, seed)
    return x, truth


def _draw_values(results: list[Result], figure: Any) -> None:
    axes = figure.subplots(1, 2)
    for axis, model in zip(axes, ("mixture", "network")):
        own, look = of(results, model=model, t=0.5), {"title": f"{model}, t = 0.5"}
        look |= {"xscale": "log", "ylabel": "correlation with the value"}
        lines(axis, own, "evaluations", "correlation", "estimate", **look)
    axes[0].legend(fontsize=7)


VALUES = Experiment(
    name="values",
    cells=_values_cells,
    columns=(
        Column("correlation", "correlation", "{:.3f}"),
        Column("bias", "bias", "{:+.2f}"),
        Column("rmse", "RMS error", "{:.2f}"),
        Column("spread", "spread of the values", "{:.2f}"),
    ),
    draw=_draw_values,
)


# ------------------------------------------------------------------------------------- stability


def _stability_cells(scale: Scale, folder: Path) -> list[Cell]:
    spans = ((0.0, 1.0), (0.0, 1e-3), (1e-3, 0.999), (0.3, 0.6), (0.3, 0.3001), (0.999, 1.0))
    return [
        Cell(
            {"solver": solver, "t": t, "t'": t_next, "M": m},
            partial(_stability, scale, solver, t, t_next, m),
        )
        for solver in ("default", "paper")
        for t, t_next in spans
        for m in scale.of((1, 4, 50), (1, 4))
    ]


def _stability(scale: Scale, solver: str, t: float, t_next: float, steps: int) -> Found:
    """float32 against float64 with the same noise, the worst over ρ; relative to the spread."""
    mixture, n = plane_mixture(), scale.of(2_000, 500)
    narrow = GaussianMixture(mixture.means.float(), 0.08)
    x = at_time(mixture.sample(n, seed=scale.seed), t, scale.seed + 1)
    size = math.hypot(_PATH.alpha(t_next), _PATH.sigma(t_next))  # of x_t': the data's scale is 1
    given: Any = {"t": t, "t_next": t_next, "steps": steps, "solver": solver, "seed": scale.seed}
    worst, where, refused = 0.0, 0.0, []
    for rho in (-1.0, -0.999, -0.5, 0.0, 0.5, 0.999, 1.0):
        try:
            wide = transition(mixture.denoiser(_PATH), x, rho=rho, **given)
            less = transition(narrow.denoiser(_PATH), x.float(), rho=rho, **given)
        except PlanError:
            refused.append(f"{rho:g}")
            continue
        apart = float((wide - less.double()).square().mean().sqrt() / size)
        if not apart <= worst:
            worst, where = apart, rho
    return {"worst": worst, "at rho": where, "refused": ", ".join(refused) or "none"}


def _draw_stability(results: list[Result], figure: Any) -> None:
    axis = figure.subplots()
    own = [
        Result({**r.settings, "span": f"{r['t']:g} to {r[_END]:g}"}, r.values)
        for r in of(results, solver="default")
    ]
    look = {"xscale": "log", "yscale": "log", "ylabel": "float32 against float64"}
    lines(axis, own, "M", "worst", "span", **look)
    axis.legend(title="t", fontsize=7)


STABILITY = Experiment(
    name="stability",
    cells=_stability_cells,
    columns=(
        Column("worst", "largest difference", "{:.1e}"),
        Column("at rho", "at ρ", "{:g}"),
        Column("refused", "refused"),
    ),
    draw=_draw_stability,
)
