"""Rules of every statistical test, and the paths and exact laws that the mathematical tests share.

Rates. The family of all statistical checks of the suite, fast and slow, raises a false alarm with
probability at most ``FAMILY_ALARM`` = 1e-3 over the choice of the seeds (which are fixed): by
Bonferroni each p-value is compared with ``LEVEL`` = 1e-3 / ``FAMILY_SIZE``, and :func:`accept`
refuses to judge more p-values than that. ``SAMPLES`` is chosen so that a law whose standard
deviation, or whose mean in units of it, is wrong by 5 % is found with power at least 0.9;
tests/core/test_transitions.py shows both the alarm rate and the power.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy import special, stats

from glass_flows.paths import EDM, Cosine, DiscreteDiffusion, Linear, Path, VariancePreserving

FAMILY_ALARM = 1e-3
FAMILY_SIZE = 8000  # p-values that the whole suite may compare
LEVEL = FAMILY_ALARM / FAMILY_SIZE
SAMPLES = 60_000

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


def moment_p_values(samples, mean, covariance) -> np.ndarray:
    """p-values of the mean and variance of every projection of (n, d) against exact moments."""
    samples = np.asarray(samples, dtype=float)
    mean, covariance = np.asarray(mean, dtype=float), np.asarray(covariance, dtype=float)
    d, n = samples.shape[1], len(samples)
    directions = list(np.eye(d)) + ([np.r_[1, 1, np.zeros(d - 2)]] if d > 1 else [])
    result = []
    for direction in directions:
        variance = direction @ covariance @ direction
        line = samples @ direction - mean @ direction
        result.append(_two_sided(line.mean() / math.sqrt(variance / n)))
        squares = line**2
        result.append(_two_sided((squares.mean() - variance) / math.sqrt(squares.var() / n)))
    return np.clip(result, 0.0, 1.0)


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
    """Σ_j w_j N(m_j, s_j² I), written with loops over components, independently of the library."""

    weights = np.array([0.5, 0.3, 0.2])
    means = np.array([[1.0, 0.4], [-0.9, 0.7], [-0.1, -1.2]])
    stds = np.array([0.35, 0.5, 0.25])

    def components(self, x, alpha: float, sigma: float):
        """Posterior shares (n, J), means (J arrays (n, d)) and variances of z | α z + σ ε = x."""
        x = np.asarray(x, dtype=float)
        logs, centres, variances = [], [], []
        for w, m, s in zip(self.weights, self.means, self.stds):
            total = alpha**2 * s**2 + sigma**2
            distance = ((x - alpha * m) ** 2).sum(1)
            logs.append(np.log(w) - 0.5 * distance / total - 0.5 * x.shape[1] * np.log(total))
            centres.append(m + alpha * s**2 / total * (x - alpha * m))
            variances.append(s**2 * sigma**2 / total)
        logs = np.stack(logs, 1)
        shares = np.exp(logs - logs.max(1, keepdims=True))
        return shares / shares.sum(1, keepdims=True), centres, variances

    def denoise(self, x, alpha: float, sigma: float) -> np.ndarray:
        shares, centres, _ = self.components(x, alpha, sigma)
        return sum(shares[:, [j]] * centres[j] for j in range(len(centres)))

    def sample(self, n: int, rng: np.random.Generator) -> np.ndarray:
        j = rng.choice(len(self.weights), n, p=self.weights)
        return self.means[j] + self.stds[j, None] * rng.standard_normal((n, 2))

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        return _pooled(self.weights, self.means, self.stds**2)

    def transition_moments(self, x, ends, rho: float) -> tuple[np.ndarray, np.ndarray]:
        """Mean and covariance of x' given one x; ends = (α, σ, α', σ')."""
        alpha, sigma, alpha_next, sigma_next = ends
        gamma = rho * sigma_next / sigma
        signal = alpha_next - gamma * alpha
        noise = sigma_next**2 * (1.0 - rho**2)
        shares, centres, variances = self.components(x[None], alpha, sigma)
        means = np.array([gamma * x + signal * c[0] for c in centres])
        return _pooled(shares[0], means, signal**2 * np.array(variances) + noise)

    def transition_sample(self, x, ends, rho: float, n: int, rng) -> np.ndarray:
        """n draws of x' given one x, by drawing z from its posterior first."""
        alpha, sigma, alpha_next, sigma_next = ends
        shares, centres, variances = self.components(x[None], alpha, sigma)
        j = rng.choice(len(variances), n, p=shares[0])
        z = np.array([c[0] for c in centres])[j]
        z = z + np.sqrt(variances)[j, None] * rng.standard_normal((n, len(x)))
        gamma = rho * sigma_next / sigma
        fresh = sigma_next * math.sqrt(1.0 - rho**2) * rng.standard_normal((n, len(x)))
        return gamma * x + (alpha_next - gamma * alpha) * z + fresh


def _pooled(weights, means, variances) -> tuple[np.ndarray, np.ndarray]:
    centre = weights @ means
    spread = (means - centre).T @ (weights[:, None] * (means - centre))
    return centre, spread + (weights @ variances) * np.eye(means.shape[1])


def ends_of(path: Path, t: float, t_next: float) -> tuple[float, float, float, float]:
    """(α, σ, α', σ'); the end t' = 1 of a plan is data."""
    last = (1.0, 0.0) if t_next == 1.0 else (path.alpha(t_next), path.sigma(t_next))
    return (path.alpha(t), path.sigma(t), *last)


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
