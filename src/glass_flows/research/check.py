"""For the sceptic: the samplers against exact answers, in a few seconds."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..denoisers import DenoiserLike
from ..errors import check_count
from ..paths import EDM, Cosine, Linear, Path, VariancePreserving
from ..plans import DDIM, Rho, Sampler
from ..sampling import posterior, sample, transition
from ..worlds.mixtures import GaussianMixture


@dataclass(frozen=True)
class Check:
    """One comparison: passes if `value` is at most `limit`."""

    what: str
    value: float
    limit: float

    @property
    def passed(self) -> bool:
        return self.value <= self.limit


def checks(seed: int = 0, samples: int = 20_000) -> Iterator[Check]:
    """Every check, as it is done; exact formulas to rounding, samples at 5 standard errors.

    Each statistical line compares the first and second moments of `samples` draws with those of as
    many exact ones, in standard errors; at the limit of 5 all of them together (about 150
    comparisons) raise a false alarm in fewer than one run in a thousand.
    """
    check_count("samples", samples, least=2)
    generator = torch.Generator().manual_seed(seed)
    means = 1.5 * torch.randn(6, 2, generator=generator, dtype=torch.float64)
    mixture = GaussianMixture(means, 0.25)
    paths: tuple[Path, ...] = (Linear(), Cosine(), VariancePreserving(), EDM())
    rhos: tuple[Rho, ...] = (-0.5, 0.0, 0.4, "ddpm", 1.0)
    for path in paths:
        denoiser = mixture.denoiser(path)
        t, t_next = path.time(0.7), path.time(1.6)
        z = mixture.sample(samples, generator=generator)
        x = path.alpha(t) * z + path.sigma(t) * _normal(z, generator)
        one = x[:1].expand_as(x).clone()
        for rho in rhos:
            drawn = transition(denoiser, one, t, t_next, rho=rho, steps=24, seed=seed)
            exact = mixture.transition_sample(path, one, t, t_next, rho, generator=generator)
            name = f"{path.name}: p(x_t' | x_t) at rho = {rho}, 24 evaluations, moments"
            yield _alike(name, drawn, exact)
        marginal = transition(denoiser, x, t, t_next, rho=0.4, steps=24, seed=seed)
        fresh = mixture.sample(samples, generator=generator)
        target = path.alpha(t_next) * fresh + path.sigma(t_next) * _normal(fresh, generator)
        yield _alike(f"{path.name}: marginals kept", marginal, target)
        z = posterior(denoiser, one[:1], t, samples=samples, steps=24, seed=seed)[:, 0]
        exact = mixture.posterior_sample(path, one, t, generator=generator)
        yield _alike(f"{path.name}: posterior p(z | x_t)", z, exact)
        yield _ddim(denoiser, path, x[:100], t, t_next)
    denoiser, six = mixture.denoiser(Linear()), Sampler(6, 8, 0.4)
    data = sample(denoiser, (samples, 2), six, seed=seed, dtype=torch.float64)
    exact = mixture.sample(samples, generator=generator)
    yield _alike("linear: six transitions of eight evaluations", data, exact)


def _ddim(denoiser: DenoiserLike, path: Path, x: Tensor, t: float, t_next: float) -> Check:
    """One evaluation with rho = 1 against deterministic DDIM, written out."""
    alpha, sigma = path.alpha(t), path.sigma(t)
    D = denoiser(x, t)
    expected = path.alpha(t_next) * D + path.sigma(t_next) * (x - alpha * D) / sigma
    error = transition(denoiser, x, t, t_next, rho=DDIM(0.0), steps=1) - expected
    name = f"{path.name}: one evaluation is DDIM (largest error)"
    return Check(name, float(error.abs().max()), 1e-10)


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, dtype=like.dtype)


def _alike(what: str, a: Tensor, b: Tensor) -> Check:
    """Largest difference of means and second moments of two samples, in standard errors."""
    worst = 0.0
    for f in (lambda v: v, lambda v: v.square(), lambda v: v.prod(1, keepdim=True)):
        fa, fb = f(a), f(b)
        error = torch.sqrt(fa.var(0) / len(fa) + fb.var(0) / len(fb))
        worst = max(worst, float(((fa.mean(0) - fb.mean(0)).abs() / error).max()))
    worst = worst if math.isfinite(worst) else math.inf
    return Check(f"{what} (standard errors)", worst, 5.0)
