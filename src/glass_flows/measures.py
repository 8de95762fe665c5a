"""Figures of merit of returned samples, with their uncertainty over runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
_NORMAL_95 = 1.959964


@dataclass(frozen=True)
class Measure:
    """A figure and its standard error over runs; `trials` for the share of so many yes or no."""

    value: float
    error: float
    trials: int | None = None

    @property
    def interval(self) -> tuple[float, float]:
        """95 % confidence: Wilson's interval for a share, else the normal one."""
        z, n = _NORMAL_95, self.trials
        if n is None:
            return self.value - z * self.error, self.value + z * self.error
        centre = (self.value + z**2 / (2 * n)) / (1 + z**2 / n)
        half = z / (1 + z**2 / n) * (self.value * (1 - self.value) / n + (z / n) ** 2 / 4) ** 0.5
        return centre - half, centre + half


def mean(values: Array) -> Measure:
    """Mean over the runs (n,), n >= 2."""
    values = np.asarray(values, dtype=float)
    return Measure(float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5))


def share(verdicts: Array) -> Measure:
    """Share of ones among verdicts of 0 and 1 (n,), n >= 2."""
    one = mean(verdicts)
    return Measure(one.value, one.error, len(verdicts))


def frechet_distance(features: Array, reference: Array) -> float:
    """Squared Fréchet distance of Gaussians fitted to (n, d) and (m, d), as in the FID.

    |μ - μ'|² + tr(C + C' - 2 (C C')^(1/2)) (Heusel et al. 2017, arXiv 1706.08500). The eigenvalues
    of C C' are those of C^(1/2) C' C^(1/2), which is symmetric.
    """
    first, second = (np.cov(f, rowvar=False) for f in (features, reference))
    shift = features.mean(0) - reference.mean(0)
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(values.clip(0.0))) @ vectors.T
    shared = np.sqrt(np.linalg.eigvalsh(root @ second @ root).clip(0.0)).sum()
    return float(shift @ shift + np.trace(first) + np.trace(second) - 2.0 * shared)


def diversity(features: Array) -> float:
    """Mean distance between two different samples (n, d)."""
    n = len(features)
    distances = _distances(features, features)
    np.fill_diagonal(distances, 0.0)
    return float(distances.sum() / (n * (n - 1)))


def half_samples(
    samples: Array, figure: Callable[[Array], float], rounds: int = 100, seed: int = 0
) -> Measure:
    """`figure` of the samples (n, d), its error from half-samples drawn without replacement.

    Half-samples have no ties, which would shrink distances; their spread is that of the whole
    sample (Politis & Romano 1994: the scale is √(b/(n - b)) = 1 at b = n/2).
    """
    rng = np.random.default_rng(seed)
    half = len(samples) // 2
    drawn = [figure(samples[rng.permutation(len(samples))[:half]]) for _ in range(rounds)]
    return Measure(figure(samples), float(np.std(drawn, ddof=1)))


def precision_recall(features: Array, reference: Array, neighbours: int = 3) -> tuple[float, float]:
    """Share of samples (n, d) within the reference (m, d), and of the reference within the samples.

    Within a set is what lies no farther from one of its points than that point's k-th neighbour in
    the set (Kynkäänniemi et al. 2019, arXiv 1904.06991).
    """

    def within(points: Array, others: Array) -> float:
        inner = _distances(others, others)
        radii = np.sort(inner, axis=1)[:, neighbours]  # the nearest is the point itself
        return float((_distances(points, others) <= radii).any(axis=1).mean())

    return within(features, reference), within(reference, features)


def _distances(a: Array, b: Array) -> Array:
    """Between every two of (n, d) and (m, d): (n, m)."""
    squares = (a**2).sum(1)[:, None] + (b**2).sum(1) - 2.0 * a @ b.T
    return np.sqrt(squares.clip(0.0))


def bootstrap(values: Array, rounds: int = 2_000, seed: int = 0) -> tuple[float, float]:
    """95 % interval of the mean of (n,) values, by the percentiles of resampled means."""
    values = np.asarray(values, dtype=float)
    rng = np.random.default_rng(seed)
    drawn = values[rng.integers(len(values), size=(rounds, len(values)))].mean(1)
    low, high = np.quantile(drawn, (0.025, 0.975))
    return float(low), float(high)
