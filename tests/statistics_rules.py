"""Rules of every statistical test, and the paths and exact laws that the mathematical tests share.

Rates. The family of all statistical checks of the suite, fast and slow, raises a false alarm with
probability at most ``FAMILY_ALARM`` = 1e-3 over the choice of the seeds (which are fixed): by
Bonferroni each p-value is compared with ``LEVEL`` = 1e-3 / ``FAMILY_SIZE``, and :func:`accept`
refuses to judge more p-values than that. ``SAMPLES`` is chosen so that a law whose standard
deviation, or whose mean in units of it, is wrong by 5 % is found with power at least 0.9 where
the samples are compared with the exact law; two samples need twice as many, each.
tests/core/test_transitions.py shows both the alarm rate and the power.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections import Counter

import numpy as np
import torch
from scipy import special, stats

from glass_flows.paths import EDM, Cosine, DiscreteDiffusion, Linear, Path, VariancePreserving

FAMILY_ALARM = 1e-3
FAMILY_SIZE = 8000  # p-values that the whole suite may compare
LEVEL = FAMILY_ALARM / FAMILY_SIZE
SAMPLES = 20_000

_judged = 0


def accept(p_values) -> bool:
    """Whether every p-value clears the Bonferroni level; counts them against the family."""
    global _judged
    p_values = np.atleast_1d(np.asarray(p_values, dtype=float))
    assert np.all((p_values >= 0) & (p_values <= 1)), "not p-values"
    _judged += p_values.size
    assert _judged <= FAMILY_SIZE, "more statistical checks than FAMILY_SIZE allows for"
    return bool(np.all(p_values > LEVEL))


def _two_sided(z) -> np.ndarray:
    return special.erfc(np.abs(np.asarray(z)) / math.sqrt(2.0))


def _projections(samples: np.ndarray) -> np.ndarray:
    """The coordinates, and their sum and difference (which see correlations): (n, d or d + 2)."""
    if samples.shape[1] == 1:
        return samples
    mixed = [samples[:, 0] + samples[:, 1], samples[:, 0] - samples[:, 1]]
    return np.concatenate([samples, np.stack(mixed, 1)], 1)


def two_sample_p_values(a, b) -> np.ndarray:
    """Mean, variance and Kolmogorov-Smirnov p-values of every projection of two samples (n, d)."""
    a, b = (_projections(np.asarray(s, dtype=float)) for s in (a, b))
    centre = b.mean(0)
    result = []
    for power in (1, 2):
        first, second = (a - centre) ** power, (b - centre) ** power
        error = np.sqrt(first.var(0) / len(a) + second.var(0) / len(b))
        result.extend(_two_sided((first.mean(0) - second.mean(0)) / error))
    result.extend(
        stats.ks_2samp(a[:, j], b[:, j], method="asymp").pvalue for j in range(a.shape[1])
    )
    return np.clip(result, 0.0, 1.0)


def law_p_values(samples, law) -> np.ndarray:
    """Mean, variance and Kolmogorov-Smirnov p-values of every projection of (n, d), d <= 2.

    ``law`` is a mixture of isotropic normals: weights (J,), means (J, d) and variances (J,).
    """
    samples = np.asarray(samples, dtype=float)
    weights, means, variances = (np.asarray(part, dtype=float) for part in law)
    n, result = len(samples), []
    for direction in _projections(np.eye(samples.shape[1])).T:
        line, centres = samples @ direction, means @ direction
        spreads = variances * (direction @ direction)
        mean = weights @ centres
        variance = weights @ (spreads + (centres - mean) ** 2)
        squares = (line - mean) ** 2
        result.append(_two_sided((line.mean() - mean) / math.sqrt(variance / n)))
        result.append(_two_sided((squares.mean() - variance) / math.sqrt(squares.var() / n)))
        parts = zip(weights, centres, np.sqrt(spreads))
        below = sum(w * special.ndtr((np.sort(line) - m) / s) for w, m, s in parts)
        steps = np.arange(n + 1) / n
        distance = max((steps[1:] - below).max(), (below - steps[:-1]).max())
        result.append(special.kolmogorov(math.sqrt(n) * distance))
    return np.clip(result, 0.0, 1.0)


# --------------------------------------------------------------------------------------- settings


def covering(*settings) -> list[tuple]:
    """Few cases of a product of settings, in which every two values of two settings meet.

    Greedy: next is the case in which most pairs are new, and of those the values least used.
    """
    cases = list(itertools.product(*settings))
    pairs = {case: set(itertools.combinations(enumerate(case), 2)) for case in cases}
    met: set = set()
    used: Counter = Counter()
    chosen: list[tuple] = []

    def gain(case):
        return len(pairs[case] - met), -sum(used[one] for one in enumerate(case))

    while any(pairs[case] - met for case in cases):
        chosen.append(max(cases, key=gain))
        met |= pairs[chosen[-1]]
        used.update(enumerate(chosen[-1]))
    return chosen


# ----------------------------------------------------------------------------------------- paths


def stable_diffusion_table(steps: int) -> list[float]:
    """ᾱ_k of the scaled-linear schedule; the product runs over `steps` betas of the same total."""
    betas = np.linspace(0.00085**0.5, 0.012**0.5, steps) ** 2 * (1000 / steps)
    return list(np.cumprod(1.0 - betas))


def zero_snr_table(steps: int) -> list[float]:
    """The same table, shifted and scaled in √ᾱ so that the noisiest timestep is pure noise."""
    root = np.sqrt(stable_diffusion_table(steps))
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return list(root**2)


PATHS: dict[str, Path] = {
    "linear": Linear(),
    "cosine": Cosine(),
    "vp": VariancePreserving(),
    "edm": EDM(),
    "discrete": DiscreteDiffusion(stable_diffusion_table(500)),
    "zero-snr": DiscreteDiffusion(zero_snr_table(500)),
}
CONTINUOUS = [name for name, path in PATHS.items() if path.trained_times is None]


@functools.cache
def time_of(path: Path, amplitude: float) -> float:
    """The time with α/σ = amplitude by bisection on α and σ alone, moved to a trained time."""
    low, high = 0.0, 1.0
    for _ in range(200):
        middle = 0.5 * (low + high)
        if path.alpha(middle) < amplitude * path.sigma(middle):
            low = middle
        else:
            high = middle
    t = 0.5 * (low + high)
    trained = path.trained_times
    return t if trained is None else min(trained, key=lambda s: abs(s - t))


# ------------------------------------------------------------------------------ an exact law, d=2


class Mixture:
    """Σ_j w_j N(m_j, s_j² I) by matrix products in numpy, independently of the library."""

    weights = np.array([0.5, 0.3, 0.2])
    means = np.array([[1.0, 0.4], [-0.9, 0.7], [-0.1, -1.2]])
    stds = np.array([0.35, 0.5, 0.25])
    law = weights, means, stds**2

    def shares(self, x, alpha: float, sigma: float) -> np.ndarray:
        """Posterior probabilities of the components given α z + σ ε = x: (J, n) of (n, d)."""
        total = alpha**2 * self.stds**2 + sigma**2
        fit = np.log(self.weights) - np.log(total)  # d = 2
        fit = fit - 0.5 * alpha**2 * (self.means**2).sum(1) / total
        logs = fit[:, None] + (alpha * self.means / total[:, None]) @ x.T
        logs -= (0.5 / total)[:, None] * (x[:, 0] ** 2 + x[:, 1] ** 2)
        shares = np.exp(logs - logs.max(0))
        return shares / shares.sum(0)

    def denoise(self, x, alpha: float, sigma: float) -> np.ndarray:
        """Of component j: m + g (x - α m), g = α s²/(α² s² + σ²)."""
        x = np.asarray(x, dtype=float)
        shares = self.shares(x, alpha, sigma).T
        gain = alpha * self.stds**2 / (alpha**2 * self.stds**2 + sigma**2)
        return shares @ ((1 - alpha * gain)[:, None] * self.means) + (shares @ gain)[:, None] * x

    def sample(self, n: int, rng: np.random.Generator) -> np.ndarray:
        j = rng.choice(len(self.weights), n, p=self.weights)
        return self.means[j] + self.stds[j, None] * rng.standard_normal((n, 2))

    def marginal(self, alpha: float, sigma: float):
        """The law of α z + σ ε, as `law`."""
        return self.weights, alpha * self.means, alpha**2 * self.stds**2 + sigma**2

    def transition(self, x, ends, rho: float):
        """The law of x' given one x, as `law`; ends = (α, σ, α', σ')."""
        alpha, sigma, alpha_next, sigma_next = ends
        gamma = rho * sigma_next / sigma
        signal = alpha_next - gamma * alpha
        total = alpha**2 * self.stds**2 + sigma**2
        gain = (alpha * self.stds**2 / total)[:, None]
        means = gamma * x + signal * (self.means + gain * (x - alpha * self.means))
        variances = signal**2 * self.stds**2 * sigma**2 / total
        shares = self.shares(np.asarray(x)[None], alpha, sigma)[:, 0]
        return shares, means, variances + sigma_next**2 * (1.0 - rho**2)


def ends_of(path: Path, t: float, t_next: float) -> tuple[float, float, float, float]:
    """(α, σ, α', σ'); the end t' = 1 of a plan is data."""
    last = (1.0, 0.0) if t_next == 1.0 else (path.alpha(t_next), path.sigma(t_next))
    return (path.alpha(t), path.sigma(t), *last)


def ddpm_rho(path, t, t_next):
    alpha, sigma, alpha_next, sigma_next = ends_of(path, t, t_next)
    return (alpha / sigma) / (alpha_next / sigma_next) if sigma_next > 0 else 0.0


def number(rho, path, t, t_next):
    """ρ of a rule: DDPM's a/a', and DDIM(η)'s √(1 - η² (1 - a²/a'²))."""
    if rho == "ddpm":
        return ddpm_rho(path, t, t_next)
    if hasattr(rho, "eta"):
        return math.sqrt(1 - rho.eta**2 * (1 - ddpm_rho(path, t, t_next) ** 2))
    return float(rho)


def middle(name, low=0.5, high=2.5):
    path = PATHS[name]
    return path, time_of(path, low), time_of(path, high)


def inner_problem(path, t, t_next, rho):
    """(a, σ, γ, ᾱ, σ̄) of a transition."""
    alpha, sigma, alpha_next, sigma_next = ends_of(path, t, t_next)
    a = alpha / sigma
    gamma = rho * sigma_next / sigma
    signal, noise = alpha_next - gamma * alpha, sigma_next * math.sqrt(1 - rho**2)
    return a, sigma, gamma, signal, noise


class Exact:
    """The mixture as a denoiser for the executor; records the times and inputs it was asked."""

    evaluations_per_call = 1

    def __init__(self, path: Path, function=None) -> None:
        self.path = path
        self.function = function or (
            lambda x, t: Mixture().denoise(x, path.alpha(t), path.sigma(t))
        )
        self.times: list[float] = []
        self.inputs: list[np.ndarray] = []

    def __call__(self, x: torch.Tensor, t: float) -> torch.Tensor:
        self.times.append(t)
        self.inputs.append(x.numpy().copy())
        return torch.from_numpy(np.ascontiguousarray(self.function(x.numpy(), t)))


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def execute(table, denoiser, x, *noises) -> np.ndarray:
    """Run a table in float64 with the noises given, numpy in and out."""
    from glass_flows.execute import run
    from glass_flows.noise import FixedNoise

    noise = FixedNoise([torch.from_numpy(np.asarray(e, dtype=float)) for e in noises])
    return run(table, denoiser, torch.from_numpy(np.asarray(x, dtype=float)), noise).numpy()


class Wide(Linear):
    """Noise of deviation two."""

    def sigma(self, t):
        return 2.0 * (1.0 - t)

    def sigma_dot(self, t):
        return -2.0

    def _time(self, amplitude):
        return 2.0 * amplitude / (1.0 + 2.0 * amplitude)
