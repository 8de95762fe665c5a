"""The exact mixtures against quadrature, importance weighting and formulas of their own."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from cases import first, one_in
from glass_flows.errors import InvalidArgument, ShapeError
from glass_flows.plans import DDIM
from glass_flows.worlds.mixtures import GaussianMixture, digits_mixture
from statistics_rules import (
    PATHS,
    SAMPLES,
    Mixture,
    accept,
    ends_of,
    law_p_values,
    time_of,
    two_sample_p_values,
)

WEIGHTS, MEANS, STDS = [0.2, 0.5, 0.3], [-1.0, 0.3, 1.4], [0.3, 0.6, 0.2]
Z = np.linspace(-8.0, 8.0, 40_001)  # the trapezoidal rule on it is exact to rounding
RHOS = [-0.8, 0.0, 0.45, 0.9]


def line() -> GaussianMixture:
    return GaussianMixture(torch.tensor(MEANS, dtype=torch.float64)[:, None], STDS, WEIGHTS)


def plane(dtype=torch.float64) -> GaussianMixture:
    law = Mixture()
    return GaussianMixture(torch.tensor(law.means, dtype=dtype), law.stds, law.weights)


def column(values) -> torch.Tensor:
    return torch.as_tensor(np.asarray(values, dtype=float))[:, None]


def prior(z):
    return sum(w * stats.norm.pdf(z, m, s) for w, m, s in zip(WEIGHTS, MEANS, STDS))


def integral(values) -> float:
    return float(np.trapezoid(values, Z))


# --------------------------------------------------------------------------- against quadrature


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("x", [-1.3, 0.2, 2.5])
def test_posterior(name, x):
    path = PATHS[name]
    t = time_of(path, 1.2)
    alpha, sigma = path.alpha(t), path.sigma(t)
    joint = prior(Z) * stats.norm.pdf(x, alpha * Z, sigma)
    evidence = integral(joint)
    law = line()
    mean = law.posterior_mean(column([x]), alpha, sigma)
    assert mean.item() == pytest.approx(integral(Z * joint) / evidence, abs=1e-10)
    assert law.denoiser(path)(column([x]), t).item() == pytest.approx(mean.item(), abs=1e-14)
    at = Z[[14_000, 20_000, 23_500]]
    got = law.posterior_log_prob(path, column(at), column([x] * 3), t)
    expected = np.log(joint[[14_000, 20_000, 23_500]] / evidence)
    np.testing.assert_allclose(got.numpy(), expected, rtol=0, atol=1e-9)
    for b in (-1.5, 0.0, 2.0):
        value = law.posterior_log_mean_exp(path, column([x]), t, torch.tensor([b]))
        tilted = math.log(integral(np.exp(b * Z) * joint) / evidence)
        assert value.item() == pytest.approx(tilted, abs=1e-9)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("rho", one_in(2, RHOS))
def test_transition_density_from_the_joint_law(name, rho):
    """p(x' | x) from p(x, x') = ∫ p(z) N((x, x'); (α, α') z, noises correlated by ρ) dz."""
    path = PATHS[name]
    t, t_next, x = time_of(path, 0.7), time_of(path, 2.0), 0.4
    alpha, sigma, alpha_next, sigma_next = ends_of(path, t, t_next)
    shared = rho * sigma * sigma_next
    joint_law = stats.multivariate_normal([0, 0], [[sigma**2, shared], [shared, sigma_next**2]])
    points = [-0.9, 0.1, 1.1]
    marginal = integral(prior(Z) * stats.norm.pdf(x, alpha * Z, sigma))
    expected = []
    for x_next in points:
        residuals = np.stack([x - alpha * Z, x_next - alpha_next * Z], 1)
        expected.append(math.log(integral(prior(Z) * joint_law.pdf(residuals)) / marginal))
    got = line().transition_log_prob(path, column(points), column([x] * 3), t, t_next, rho)
    np.testing.assert_allclose(got.numpy(), expected, rtol=0, atol=1e-8)


def test_transitions_to_data_are_the_posterior():
    path, law, x = PATHS["vp"], line(), column([0.3, -0.6])
    z = column([0.1, -0.8])
    for rho in (-1.0, 0.4, "ddpm"):
        got = law.transition_log_prob(path, z, x, 0.6, 1.0, rho)
        np.testing.assert_allclose(got, law.posterior_log_prob(path, z, x, 0.6), atol=1e-12)


def test_density_mean_and_covariance():
    law = line()
    np.testing.assert_allclose(
        law.log_prob(column([-1.0, 0.2, 2.0])),
        np.log(prior(np.array([-1.0, 0.2, 2.0]))),
        atol=1e-12,
    )
    mean = integral(Z * prior(Z))
    assert law.mean().item() == pytest.approx(mean, abs=1e-12)
    assert law.covariance().item() == pytest.approx(integral((Z - mean) ** 2 * prior(Z)), abs=1e-12)
    weights, means, variances = Mixture.law
    mean = sum(w * m for w, m in zip(weights, means))
    second = sum(w * (np.outer(m, m) + v * np.eye(2)) for w, m, v in zip(weights, means, variances))
    np.testing.assert_allclose(plane().mean(), mean, atol=1e-14)
    np.testing.assert_allclose(plane().covariance(), second - np.outer(mean, mean), atol=1e-14)


@pytest.mark.parametrize("name", PATHS)
def test_denoiser_in_two_dimensions(name):
    path, rng = PATHS[name], np.random.default_rng(0)
    for amplitude in (0.1, 1.0, 20.0):
        t = time_of(path, amplitude)
        alpha, sigma = path.alpha(t), path.sigma(t)
        x = alpha * Mixture().sample(9, rng) + sigma * rng.standard_normal((9, 2))
        got = plane().denoiser(path)(torch.from_numpy(x), t)
        np.testing.assert_allclose(got, Mixture().denoise(x, alpha, sigma), rtol=0, atol=1e-9)


def test_denoiser_at_the_ends():
    x = torch.tensor([[0.3, -0.2], [1.0, 2.0]], dtype=torch.float64)
    denoiser = plane().denoiser(PATHS["linear"])
    np.testing.assert_allclose(denoiser(x, 0.0), plane().mean().expand(2, 2), atol=1e-14)
    assert torch.equal(denoiser(x, 1.0), x)
    assert denoiser.evaluations_per_call == 1
    assert denoiser(x.float(), 0.5).dtype == torch.float32


@pytest.mark.parametrize("dimension", [1, 2])
@pytest.mark.parametrize(
    ("curvature", "centred"), [(0.0, False), (0.7, False), (0.7, True), (-0.9, True)]
)
def test_tilting(dimension, curvature, centred):
    """p(z) exp(b·z - c |z - m|²/2) and its normaliser by quadrature; in 2-d over a product law."""
    b, m = 0.8, 0.5 if centred else 0.0
    law = line()
    if dimension == 2:  # the mixture on the first axis, N(0.2, its own std²) on the second
        means = torch.tensor([[v, 0.2] for v in MEANS], dtype=torch.float64)
        law = GaussianMixture(means, STDS, WEIGHTS)
    linear = torch.full((dimension,), b, dtype=torch.float64)
    centre = torch.full((dimension,), m, dtype=torch.float64) if centred else None
    tilted, evidence = law.tilted(linear, curvature, centre)

    def reward(z):
        return b * z - curvature * (z - m) ** 2 / 2

    weight = np.exp(reward(Z))
    if dimension == 1:
        total = integral(prior(Z) * weight)
        mean = integral(Z * prior(Z) * weight) / total
        points = Z[[15_000, 21_000]]
        np.testing.assert_allclose(
            tilted.log_prob(column(points)),
            np.log(prior(points)) + reward(points) - math.log(total), atol=1e-9,
        )  # fmt: skip
    else:
        parts = [
            (
                w * integral(stats.norm.pdf(Z, v, s) * weight)
                * integral(stats.norm.pdf(Z, 0.2, s) * weight),
                integral(Z * stats.norm.pdf(Z, v, s) * weight)
                / integral(stats.norm.pdf(Z, v, s) * weight),
            )
            for w, v, s in zip(WEIGHTS, MEANS, STDS)
        ]  # fmt: skip
        total = sum(share for share, _ in parts)
        mean = sum(share * value for share, value in parts) / total
    assert evidence == pytest.approx(math.log(total), abs=1e-10)
    assert tilted.mean()[0].item() == pytest.approx(mean, abs=1e-10)


def test_tilts_without_a_law_are_refused():
    law = line()
    with pytest.raises(InvalidArgument, match=r"-2\.77778"):
        law.tilted(curvature=-1 / 0.36 - 1e-6)
    tilted, evidence = law.tilted()
    assert evidence == pytest.approx(0.0, abs=1e-14)
    np.testing.assert_allclose(tilted.means, law.means, atol=1e-14)
    law.tilted(curvature=-1 / 0.36 + 1e-3)


# ----------------------------------------------------------------------------- sampling, in law


def test_samples_of_the_law():
    draws = plane().sample(SAMPLES, seed=3).numpy()
    assert accept(law_p_values(draws, Mixture.law))


@pytest.mark.parametrize("name", first(PATHS))
def test_transition_samples(name):
    """Draws from one x against the law written down independently."""
    path = PATHS[name]
    t, t_next = time_of(path, 0.7), time_of(path, 2.0)
    x = path.alpha(t) * np.array([0.2, 0.5]) + path.sigma(t) * np.array([-0.4, 0.3])
    batch = torch.from_numpy(x).expand(SAMPLES, 2)
    ends = ends_of(path, t, t_next)
    for i, rho in enumerate((-1.0, -0.5, 0.4, 1.0)):
        draws = plane().transition_sample(path, batch, t, t_next, rho, seed=i).numpy()
        assert accept(law_p_values(draws, Mixture().transition(x, ends, rho)))


@pytest.mark.slow
def test_transition_samples_by_importance_weights():
    """Prior draws weighted by p(x | z) are the posterior; pushed through the kernel, p(x' | x)."""
    path, t, t_next, rho = PATHS["linear"], 0.4, 0.7, -0.6
    x = np.array([0.3, 0.2])
    rng = np.random.default_rng(0)
    z = Mixture().sample(14 * SAMPLES, rng)
    likelihood = np.exp(-((x - 0.4 * z) ** 2).sum(1) / (2 * 0.6**2))
    kept = z[rng.uniform(size=len(z)) < likelihood]  # rejection: the likelihood is at most 1
    assert len(kept) > 2 * SAMPLES
    # x' = α' z + σ' (ρ ε̂ + √(1-ρ²) n), ε̂ the noise that z leaves in x
    noise = rho * (x - 0.4 * kept) / 0.6
    noise = noise + math.sqrt(1 - rho**2) * rng.standard_normal(kept.shape)
    own = 0.7 * kept + 0.3 * noise
    batch = torch.from_numpy(x).expand(2 * SAMPLES, 2)
    draws = plane().transition_sample(path, batch, t, t_next, rho, seed=5).numpy()
    assert accept(two_sample_p_values(draws, own))
    posterior = plane().posterior_sample(path, batch, t, seed=6).numpy()
    assert accept(two_sample_p_values(posterior, kept))


def test_transition_rules():
    path, x = PATHS["linear"], torch.tensor([[0.3, 0.2]], dtype=torch.float64).expand(50, 2)
    law = plane()
    one = law.transition_sample(path, x, 0.4, 0.7, "ddpm", seed=1)
    two = law.transition_sample(path, x, 0.4, 0.7, (0.4 / 0.6) / (0.7 / 0.3), seed=1)
    np.testing.assert_allclose(one, two, atol=1e-14)
    one = law.transition_sample(path, x, 0.4, 0.7, DDIM(0.0), seed=1)
    assert torch.equal(one, law.transition_sample(path, x, 0.4, 0.7, 1.0, seed=1))


# ------------------------------------------------------------------------------ shapes and errors


def test_images_are_flattened_and_put_back():
    means = torch.randn(5, 1, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    law = GaussianMixture(means, 0.3)
    flat = GaussianMixture(means.reshape(5, 6), 0.3)
    assert (law.shape, law.dimension) == ((1, 2, 3), 6)
    x = law.sample(4, seed=1)
    assert x.shape == (4, 1, 2, 3)
    path = PATHS["cosine"]
    np.testing.assert_allclose(
        law.denoiser(path)(x, 0.4).reshape(4, 6), flat.denoiser(path)(x.reshape(4, 6), 0.4)
    )
    for draw in (
        law.posterior_sample(path, x, 0.4, seed=2),
        law.transition_sample(path, x, 0.4, 0.6, 0.3, seed=2),
    ):
        assert draw.shape == x.shape
    assert law.posterior_log_prob(path, x, x, 0.4).shape == (4,)
    with pytest.raises(ShapeError):
        law.denoiser(path)(x.reshape(4, 6), 0.4)
    with pytest.raises(ShapeError):
        law.log_prob(x[:, 0])


def test_weights_are_normalised_and_default_to_equal():
    means = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    np.testing.assert_allclose(
        GaussianMixture(means, 0.1, [2.0, 6.0]).log_weights.exp(), [0.25, 0.75], atol=1e-15
    )
    np.testing.assert_allclose(GaussianMixture(means, 0.1).log_weights.exp(), [0.5, 0.5])
    # a component of no weight is allowed, and never drawn
    alone = GaussianMixture(means, 0.001, [1.0, 0.0])
    assert alone.sample(200, seed=0).max() < 0.5
    assert bool(torch.isfinite(alone.denoiser(PATHS["linear"])(means, 0.5)).all())


def test_seeds_and_generators():
    law = plane()
    assert torch.equal(law.sample(5, seed=1), law.sample(5, seed=1))
    assert not torch.equal(law.sample(5, seed=1), law.sample(5, seed=2))
    one, two = (law.sample(5, generator=torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(one, two)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((torch.zeros(3), 0.1), ShapeError),
        ((torch.zeros(3, 2, dtype=torch.int64), 0.1), ShapeError),
        ((torch.zeros(3, 2), 0.1, [1.0, 1.0]), ShapeError),
        ((torch.zeros(3, 2), 0.0), InvalidArgument),
        ((torch.zeros(3, 2), [0.1, 0.1, -0.1]), InvalidArgument),
        ((torch.zeros(3, 2), math.inf), InvalidArgument),
        ((torch.zeros(3, 2), 0.1, [1.0, -1.0, 1.0]), InvalidArgument),
        ((torch.zeros(3, 2), 0.1, [0.0, 0.0, 0.0]), InvalidArgument),
        ((torch.zeros(3, 2), 0.1, [1.0, math.nan, 1.0]), InvalidArgument),
    ],
)
def test_invalid_mixtures(arguments, error):
    with pytest.raises(error):
        GaussianMixture(*arguments)


def test_laws_without_a_density_are_refused():
    """A law with a variance of zero has no density; a path that stops at t = 1 is such a law."""
    x = torch.zeros(2, 2, dtype=torch.float64)
    with pytest.raises(InvalidArgument, match="no density"):
        plane().posterior_log_prob(PATHS["linear"], x, x, 1.0)


def test_digits():
    law = digits_mixture(0.1)
    assert (law.means.shape, law.means.dtype) == ((1797, 1, 8, 8), torch.float64)
    assert (law.means.min(), law.means.max()) == (-1.0, 1.0)
    assert float(law.stds[0]) == pytest.approx(0.1, abs=1e-15)
    x = 0.999 * law.means[[5]]  # close to data the nearest digit is the answer
    assert float((law.denoiser(PATHS["linear"])(x, 0.999) - law.means[[5]]).abs().max()) < 1e-3
