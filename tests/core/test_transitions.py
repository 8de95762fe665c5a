"""Sampled transitions against exact laws: statistical tests, limits, marginals.

Rates and their Bonferroni family: tests/statistics_rules.py.
"""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats

from cases import one_in
from glass_flows import posterior, sample, transition
from glass_flows.errors import InvalidArgument, TimeError
from glass_flows.noise import FixedNoise
from glass_flows.plans import DDIM, Default, FirstOrder, Paper, plan, plan_transition
from glass_flows.worlds.mixtures import GaussianMixture
from statistics_rules import (
    CONTINUOUS,
    FAMILY_ALARM,
    FAMILY_SIZE,
    LEVEL,
    PATHS,
    SAMPLES,
    Exact,
    Mixture,
    accept,
    covering,
    ends_of,
    execute,
    law_p_values,
    normal,
    number,
    time_of,
    two_sample_p_values,
)

slow = pytest.mark.slow
RHOS = [-0.9, -0.4, 0.0, 0.4, 0.8, 1.0, "ddpm"]


def every_path_and_rho(rhos):
    """Every ρ on the linear path and on one other, so that every other path has one at least.

    What they have in common holds for all pairs: `test_paths_differ_by_their_units`.
    """
    others = itertools.cycle([name for name in PATHS if name != "linear"])
    return [(name, rho) for rho in rhos for name in ("linear", next(others))]


# ----------------------------------------------------------------------------- the tests themselves


@slow  # a test of the tests
@pytest.mark.parametrize("wrong", ["standard deviation", "mean"])
@pytest.mark.parametrize("law", ["normal", "mixture"])
def test_power_against_five_percent(wrong, law):
    """Over 30 seeds at least 0.9 of the tests find an error of 5 %, and the exact law passes.

    The mean is off by 0.05 standard deviations, in one coordinate only; so is the deviation.
    """
    found = {"law": 0, "two-sample": 0}
    for seed in range(30):
        rng = np.random.default_rng(seed)
        exact, draw = Mixture.law, lambda n, rng=rng: Mixture().sample(n, rng)
        if law == "normal":
            exact = [1.0], np.zeros((1, 2)), [1.0]
            draw = lambda n, rng=rng: rng.standard_normal((n, 2))  # noqa: E731
        a, b = draw(2 * SAMPLES), draw(2 * SAMPLES)
        if seed < 3:
            assert np.all(law_p_values(a[:SAMPLES], exact) > LEVEL)
            assert np.all(two_sample_p_values(a, b) > LEVEL)
        centre, deviation = b[:, 0].mean(), b[:, 0].std()
        if wrong == "mean":
            a[:, 0] += 0.05 * deviation
        else:
            a[:, 0] = centre + 1.05 * (a[:, 0] - centre)
        found["law"] += bool(np.any(law_p_values(a[:SAMPLES], exact) <= LEVEL))
        found["two-sample"] += bool(np.any(two_sample_p_values(a, b) <= LEVEL))
    assert found["law"] >= 27
    assert found["two-sample"] >= 27


@pytest.mark.slow
def test_false_alarms_are_as_rare_as_stated():
    """p-values of exact laws exceed u with probability at least 1 - u, also in the tail."""
    assert pytest.approx(LEVEL * FAMILY_SIZE) == FAMILY_ALARM == 1e-3
    values = []
    for seed in range(150):
        rng = np.random.default_rng(1000 + seed)
        a, b = (Mixture().sample(2000, rng) for _ in range(2))
        values.append(np.r_[two_sample_p_values(a, b), law_p_values(a, Mixture.law)])
    values = np.array(values)
    for level in (0.3, 0.05, 0.01):
        rate = (values <= level).mean(0)
        # each column is a binomial rate over 150 seeds; five of its deviations are allowed for
        assert np.all(rate <= level + 5 * math.sqrt(level / 150))


def test_accept_counts_and_refuses():
    assert accept([0.5, 0.1])
    assert not accept([0.5, LEVEL / 2])
    assert not accept(0.0)
    with pytest.raises(AssertionError):
        accept([math.nan])
    with pytest.raises(AssertionError, match="FAMILY_SIZE"):
        accept(np.ones(FAMILY_SIZE + 1))
    import statistics_rules

    statistics_rules._judged -= FAMILY_SIZE + 1 + 4  # the checks above were of no law


# --------------------------------------------------------------------- transitions, in law, from x


def draw(path, t, t_next, rho, steps, solver, seed, n=SAMPLES, x=None):
    """(x, n draws of x' from that one x, through the table and the mixture's exact denoiser)."""
    if x is None:
        x = path.alpha(t) * np.array([0.2, 0.5]) + path.sigma(t) * np.array([-0.4, 0.3])
    table = plan_transition(path, t, t_next, rho=rho, steps=steps, solver=solver)
    batch, eps = np.tile(x, (n, 1)), normal(n, 2, seed=seed)
    return x, execute(table, Exact(path), batch, eps)


def check_law(name, rho, solver, steps, low, high, seed):
    path = PATHS[name]
    t = time_of(path, low)
    t_next = 1.0 if high is None else time_of(path, high)
    ends = ends_of(path, t, t_next)
    x, draws = draw(path, t, t_next, rho, steps, solver, seed)
    assert accept(law_p_values(draws, Mixture().transition(x, ends, number(rho, path, t, t_next))))


@pytest.mark.parametrize(("name", "rho"), one_in(2, every_path_and_rho(RHOS)))
def test_transitions_have_the_exact_law(name, rho):
    check_law(name, rho, "default", 24, 0.7, 2.0, seed=RHOS.index(rho))


@pytest.mark.parametrize("name", one_in(2, PATHS))
def test_transitions_to_data_have_the_exact_law(name):
    check_law(name, 0.4, Default(sigma_data=0.6), 40, 0.7, None, seed=50)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("solver", ["default", "first-order"])
def test_transitions_to_data_are_one_for_every_rho(name, solver):
    """There is no noise at data for ρ to be the correlation of: γ = σ̄ = 0."""
    path = PATHS[name]
    transitions = [
        plan_transition(path, time_of(path, 0.7), 1.0, rho=rho, steps=40, solver=solver)
        for rho in (*RHOS, -1.0, DDIM(0.5))
    ]
    first, *others = (dataclasses.replace(table.transitions[0], rho=0.0) for table in transitions)
    assert (first.gamma, first.sigma_bar) == (0.0, 0.0)
    assert all(other == first for other in others)


@pytest.mark.parametrize("name", [name for name in CONTINUOUS if name != "linear"])
@pytest.mark.parametrize("rho", one_in(3, [*RHOS, -1.0, DDIM(0.5), "ode"]), ids=str)
def test_paths_differ_by_their_units(name, rho):
    """The same x/σ and ε give the same x'/σ': what is shown of one path holds for the others."""

    def moved(path, make, steps):
        t, t_next = time_of(path, 0.7), time_of(path, 2.0)
        solver = make(path.sigma(t_next))
        table = plan_transition(path, t, t_next, rho=rho, steps=steps, solver=solver)
        x = execute(table, Exact(path), path.sigma(t) * normal(6, 2), normal(6, 2, seed=1))
        return x / path.sigma(t_next)

    solvers = [lambda _: "default", lambda _: "first-order"]
    if rho != "ode":
        solvers.append(lambda unit: Paper(sigma0=0.8 * unit))  # the one setting that has a unit
    for make, steps in itertools.product(solvers, (1, 5)):
        ours, linear = (moved(path, make, steps) for path in (PATHS[name], PATHS["linear"]))
        np.testing.assert_allclose(ours, linear, rtol=0, atol=1e-9)


# On trained timesteps too few are in reach for the first-order solver to converge.
LIMITS = [("linear", FirstOrder()), ("linear", Paper()), ("discrete", Paper())]


@slow
@pytest.mark.parametrize("rho", [-0.9, 0.4, 1.0])
@pytest.mark.parametrize(("name", "solver"), LIMITS, ids=lambda one: getattr(one, "name", one))
def test_first_order_solvers_have_the_exact_law(name, rho, solver):
    """In the limit, which `test_all_solvers_reach_the_same_transition` shows of every state."""
    check_law(name, rho, solver, 250, 0.7, 2.0, seed=62)


def test_a_wrong_correlation_is_noticed():
    """The same check rejects a transition whose ρ is off by 0.1."""
    path, t, t_next = PATHS["linear"], 0.4, 0.65
    ends = ends_of(path, t, t_next)
    x, draws = draw(path, t, t_next, 0.5, 24, "default", 8)
    p_values = law_p_values(draws, Mixture().transition(x, ends, 0.4))
    assert p_values.min() <= LEVEL


# --------------------------------------------------------------------------------------- marginals


MARGINAL_RHOS = [-1.0, -0.5, 0.4, 1.0, "ddpm", DDIM(0.5), "ode"]


@pytest.mark.parametrize(("name", "rho"), one_in(3, every_path_and_rho(MARGINAL_RHOS)), ids=str)
def test_marginals_are_preserved(name, rho):
    """States of the exact law at t, moved to t', have the exact law at t'."""
    path = PATHS[name]
    t, t_next = time_of(path, 0.7), time_of(path, 2.0)
    rng = np.random.default_rng(200)
    alpha, sigma, alpha_next, sigma_next = ends_of(path, t, t_next)
    x = alpha * Mixture().sample(SAMPLES, rng) + sigma * rng.standard_normal((SAMPLES, 2))
    table = plan_transition(path, t, t_next, rho=rho, steps=16)
    got = execute(table, Exact(path), x, rng.standard_normal((SAMPLES, 2)))
    assert accept(law_p_values(got, Mixture().marginal(alpha_next, sigma_next)))


@pytest.mark.parametrize("rho", [-0.8, 0.4, "ddpm"])
def test_whole_samples_have_the_law_of_the_data(rho):
    """Four transitions from noise to data."""
    path = PATHS["linear"]
    rng = np.random.default_rng(300)
    table = plan(path, transitions=4, steps=16, rho=rho)
    x, *noises = (rng.standard_normal((SAMPLES, 2)) for _ in range(5))
    assert accept(law_p_values(execute(table, Exact(path), x, *noises), Mixture.law))


def library_mixture() -> GaussianMixture:
    law = Mixture()
    return GaussianMixture(torch.from_numpy(law.means), law.stds, law.weights)


@pytest.mark.slow
def test_sample_draws_from_the_data():
    denoiser = library_mixture().denoiser(PATHS["vp"])
    drawn = sample(
        denoiser, (SAMPLES, 2), transitions=3, steps=20, rho=0.4, seed=5, start="pure",
        randomness="stream", dtype=torch.float64, progress=False,
    )  # fmt: skip
    assert accept(law_p_values(drawn.numpy(), Mixture.law))


@pytest.mark.parametrize("name", ["linear", "edm"])
def test_posterior_draws_are_of_the_posterior(name):
    path = PATHS[name]
    t = time_of(path, 0.7)
    x = path.alpha(t) * np.array([[0.2, 0.5]]) + path.sigma(t) * np.array([[-0.4, 0.3]])
    drawn = posterior(
        library_mixture().denoiser(path), torch.from_numpy(np.tile(x, (20, 1))), t,
        samples=SAMPLES // 20, steps=40, generator=torch.Generator().manual_seed(3),
    )  # fmt: skip
    assert drawn.shape == (SAMPLES // 20, 20, 2)
    ends = (path.alpha(t), path.sigma(t), 1.0, 0.0)
    law = Mixture().transition(x[0], ends, 0.0)
    assert accept(law_p_values(drawn.reshape(-1, 2).numpy(), law))


@pytest.mark.slow
def test_posterior_draws_from_noise_are_data():
    x = torch.zeros(2, 2, dtype=torch.float64)
    drawn = posterior(
        library_mixture().denoiser(PATHS["linear"]), x, 0.0, samples=SAMPLES // 2, steps=30,
        generator=torch.Generator().manual_seed(3),
    )  # fmt: skip
    assert accept(law_p_values(drawn.reshape(-1, 2).numpy(), Mixture.law))


# ------------------------------------------------------------------------------ noise and its use


def test_transition_is_a_function_of_state_and_noise():
    path = PATHS["cosine"]
    denoiser = library_mixture().denoiser(path)
    x, eps = torch.from_numpy(normal(8, 2)), torch.from_numpy(normal(8, 2, seed=1))
    options = {"rho": 0.4, "steps": 4}
    got = transition(denoiser, x, 0.4, 0.7, noise=eps, **options)
    table = plan_transition(path, 0.4, 0.7, **options)
    np.testing.assert_allclose(got, execute(table, Exact(path), x.numpy(), eps.numpy()), atol=1e-9)
    assert torch.equal(got, transition(denoiser, x, 0.4, 0.7, noise=eps, **options))
    one, two, three = (transition(denoiser, x, 0.4, 0.7, seed=s, **options) for s in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, three)
    with pytest.raises(InvalidArgument, match="not several"):
        transition(denoiser, x, 0.4, 0.7, noise=eps, seed=1, **options)
    with pytest.raises(TimeError):
        transition(denoiser, x, 0.7, 0.4, noise=eps, **options)


def test_the_sample_of_a_latent_keeps_its_meaning():
    """x_0/σ_0 is the first transition's ε: a given latent and the table executed by hand agree."""
    path = PATHS["edm"]
    latent = normal(8, 2)
    got = sample(
        library_mixture().denoiser(path), torch.from_numpy(latent), transitions=1, steps=6,
        rho=0.4, start="pure", seed=0, progress=False,
    )  # fmt: skip
    table = plan(path, transitions=1, steps=6, rho=-0.9, start="pure")
    expected = execute(table, Exact(path), 80.0 * latent)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-8)


def test_fixed_noise_is_standard_normal_whatever_the_transition():
    """A table draws ε ~ N(0, I): its own scale sits in the coefficients, not in the noise."""
    path = PATHS["linear"]
    eps = [torch.from_numpy(normal(4, 2, seed=k)) for k in range(2)]
    source = FixedNoise(eps)
    assert torch.equal(source(1, eps[0]), eps[1])
    with pytest.raises(InvalidArgument, match="transition 2 needs one"):
        source(2, eps[0])
    table = plan(path, transitions=2, steps=1, rho=0.0, times=[0.2, 0.6, 0.9])
    x = normal(4, 2, seed=9)
    first = 0.6 * Mixture().denoise(x, 0.2, 0.8) + 0.4 * eps[0].numpy()
    second = 0.9 * Mixture().denoise(first, 0.6, 0.4) + 0.1 * eps[1].numpy()
    got = execute(table, Exact(path), x, *(e.numpy() for e in eps))
    np.testing.assert_allclose(got, second, rtol=0, atol=1e-12)


# ------------------------------------------------------------------------------------------- limits


@pytest.mark.parametrize(
    ("name", "sign", "solver", "steps"),
    covering(PATHS, [-1.0, 1.0], ["default", "first-order", "paper"], [1, 4]),
)
def test_the_limit_of_rho(name, sign, solver, steps):
    """ρ → ±1 is continuous with ρ = ±1: the distance falls like √(1 - ρ²).

    Fails for a solver that treats σ̄ = 0 exactly as another case than a σ̄ of 1e-6.
    """
    path = PATHS[name]
    t, t_next = time_of(path, 0.7), time_of(path, 2.0)
    x = path.sigma(t) * normal(6, 2)
    eps = normal(6, 2, seed=1)

    def at(rho):
        table = plan_transition(path, t, t_next, rho=rho, steps=steps, solver=solver)
        return execute(table, Exact(path), x, eps)

    limit = at(sign)
    gaps = [np.abs(at(sign * (1 - d)) - limit).max() for d in (1e-8, 1e-12)]
    # on trained timesteps the grid may still jump by one between 1e-8 and the limit
    assert gaps[1] < 2e-5 * path.sigma(t_next)
    if path.trained_times is None:
        assert gaps[0] < 2e-3 * path.sigma(t_next)


@pytest.mark.parametrize(
    ("name", "rho", "solver", "steps"),
    [
        *covering(
            ["linear", "cosine", "vp"],
            [-0.5, 0.4, 1.0, "ddpm"],
            ["default", "first-order", "paper"],
            [1, 4],
        ),
        *(
            ("linear", "ode", solver, steps)
            for solver, steps in [("default", 4), ("first-order", 1)]
        ),
    ],
)
def test_the_limit_of_the_end(name, rho, solver, steps):
    """t' → 1 is continuous with t' = 1."""
    path = PATHS[name]
    t, x, eps = time_of(path, 0.7), normal(6, 2), normal(6, 2, seed=1)

    def at(t_next):
        table = plan_transition(path, t, t_next, rho=rho, steps=steps, solver=solver)
        return execute(table, Exact(path), x, eps)

    gap = np.abs(at(1.0 - 1e-12) - at(1.0)).max()
    assert gap < 1e-5


@pytest.mark.parametrize("solver", ["default", "first-order"])
def test_the_limit_of_the_start(solver):
    """t → 0 at ρ = 0: a state that says ever less and a fresh ε tend to the start from noise."""
    path, x, eps = PATHS["linear"], normal(6, 2), normal(6, 2, seed=1)
    near = plan_transition(path, 1e-10, 0.6, rho=0.0, steps=4, solver=solver)
    exact = plan_transition(path, 0.0, 0.6, rho=0.0, steps=4, solver=solver)
    np.testing.assert_allclose(
        execute(near, Exact(path), x, eps), execute(exact, Exact(path), eps), rtol=0, atol=1e-8
    )


def test_long_chains_of_exact_transitions_forget_nothing():
    """Two transitions with ρ_1 and ρ_2 leave x_t and x_t'' noises that correlate by ρ_1 ρ_2.

    Seen on a point mass, where the noises themselves can be read off.
    """
    path, n = PATHS["linear"], 40_000
    mean = np.array([0.4, -0.3])
    denoiser = Exact(path, lambda x, t: np.broadcast_to(mean, x.shape))
    noise = normal(n, 2)
    table = plan(path, transitions=2, steps=3, rho=[0.8, -0.5], times=[0.2, 0.5, 0.8],
                 solver="first-order")  # fmt: skip
    end = execute(
        table, denoiser, 0.2 * mean + 0.8 * noise, normal(n, 2, seed=1), normal(n, 2, seed=2)
    )
    left = (end - 0.8 * mean) / 0.2
    # -0.4 + √0.84 · N(0, 1) would be the regression; Fisher's z has deviation 1/√n
    for j in range(2):
        correlation = float(np.corrcoef(noise[:, j], left[:, j])[0, 1])
        z = (math.atanh(correlation) - math.atanh(-0.4)) * math.sqrt(n - 3)
        assert accept(2 * stats.norm.sf(abs(z)))
