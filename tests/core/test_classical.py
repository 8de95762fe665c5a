"""DDPM, DDIM(η), the probability-flow ODE and Euler-Maruyama against formulas of their own."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.integrate import solve_ivp

from cases import first
from glass_flows.errors import InvalidArgument
from glass_flows.paths import DiscreteDiffusion, Linear
from glass_flows.plans import DDIM, EulerMaruyama, plan, plan_transition
from statistics_rules import (
    CONTINUOUS,
    PATHS,
    Exact,
    Mixture,
    ends_of,
    execute,
    normal,
    stable_diffusion_table,
    time_of,
)

DDPM_SOLVERS = ["default", "first-order", "paper"]


def run(path, t, t_next, rho, steps=1, solver="default", seed=0):
    """(x, ε, D_t(x), x') of one transition of the mixture."""
    x = path.alpha(t) * Mixture().sample(7, np.random.default_rng(seed + 5))
    x = x + path.sigma(t) * normal(7, 2, seed=seed)
    eps = normal(7, 2, seed=seed + 1)
    table = plan_transition(path, t, t_next, rho=rho, steps=steps, solver=solver)
    D = Mixture().denoise(x, path.alpha(t), path.sigma(t))
    return x, eps, D, execute(table, Exact(path), x, eps)


def moments(name, low=0.5, high=2.5):
    path = PATHS[name]
    return path, time_of(path, low), time_of(path, high)


# ------------------------------------------------------------------------------------------ DDPM


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("solver", DDPM_SOLVERS)
def test_one_evaluation_is_ddpm(name, solver):
    """Ancestral sampling: the posterior q(x' | x, z) of the noising chain, z replaced by D.

    The chain noises x' to x = r x' + √(σ² - r² σ'²) n with r = α/α'; Bayes' rule combines this
    with x' = α' z + σ' n' (precisions add).
    """
    path, t, t_next = moments(name)
    alpha, sigma, alpha_next, sigma_next = ends_of(path, t, t_next)
    x, eps, D, got = run(path, t, t_next, "ddpm", solver=solver)
    r = alpha / alpha_next
    forward = sigma**2 - r**2 * sigma_next**2
    variance = 1 / (1 / sigma_next**2 + r**2 / forward)
    mean = variance * (alpha_next * D / sigma_next**2 + r * x / forward)
    np.testing.assert_allclose(got, mean + math.sqrt(variance) * eps, rtol=0, atol=1e-11)


def test_ddpm_of_neighbouring_timesteps_in_betas():
    """Ho et al. 2020, eqs. 6 and 7, from β_k = 1 - ᾱ_k/ᾱ_(k-1)."""
    table = stable_diffusion_table(50)
    path = DiscreteDiffusion(table)
    for k in (49, 25, 7):
        t, t_next = 1 - (k + 1) / 50, 1 - k / 50
        t, t_next = (min(path.trained_times, key=lambda s: abs(s - v)) for v in (t, t_next))
        x, eps, D, got = run(path, t, t_next, "ddpm")
        before, now = table[k - 1], table[k]
        beta = 1 - now / before
        mean = math.sqrt(before) * beta / (1 - now) * D
        mean = mean + math.sqrt(1 - beta) * (1 - before) / (1 - now) * x
        std = math.sqrt((1 - before) / (1 - now) * beta)
        np.testing.assert_allclose(got, mean + std * eps, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", PATHS)
def test_the_last_step_of_one_evaluation_is_the_denoiser(name):
    path = PATHS[name]
    for rho in ("ddpm", DDIM(0.5), 0.3, -1.0):
        _, _, D, got = run(path, time_of(path, 0.5), 1.0, rho)
        np.testing.assert_allclose(got, D, rtol=0, atol=1e-12)


# ------------------------------------------------------------------------------------------ DDIM


@pytest.mark.parametrize("name", ["vp", "cosine", "discrete", "zero-snr"])
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("solver", DDPM_SOLVERS)
def test_ddim_on_variance_preserving_paths(name, eta, solver):
    """Song et al. 2021, eqs. 12 and 16, in ᾱ = α²."""
    path, t, t_next = moments(name)
    now, after = path.alpha(t) ** 2, path.alpha(t_next) ** 2
    x, eps, D, got = run(path, t, t_next, DDIM(eta), solver=solver)
    std = eta * math.sqrt((1 - after) / (1 - now)) * math.sqrt(1 - now / after)
    noise = (x - math.sqrt(now) * D) / math.sqrt(1 - now)
    expected = math.sqrt(after) * D + math.sqrt(1 - after - std**2) * noise + std * eps
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("rho", [-1.0, -0.4, 0.0, 0.7, 1.0])
def test_one_evaluation_splits_the_noise(name, rho):
    """x' = α' D + σ' (ρ ε̂ + √(1-ρ²) ε) with ε̂ = (x - α D)/σ; ρ = 1 is deterministic DDIM."""
    path, t, t_next = moments(name)
    alpha, sigma, alpha_next, sigma_next = ends_of(path, t, t_next)
    x, eps, D, got = run(path, t, t_next, rho)
    noise = rho * (x - alpha * D) / sigma + math.sqrt(1 - rho**2) * eps
    np.testing.assert_allclose(got, alpha_next * D + sigma_next * noise, rtol=0, atol=1e-11)
    other = run(path, t, t_next, rho, solver="first-order")[3]
    np.testing.assert_allclose(got, other, rtol=0, atol=1e-11)


@pytest.mark.parametrize("solver", DDPM_SOLVERS)
def test_deterministic_ddim_ignores_the_noise(solver):
    path, t, t_next = moments("linear")
    x = normal(7, 2)
    for rho in (1.0, DDIM(0.0)):
        table = plan_transition(path, t, t_next, rho=rho, steps=1, solver=solver)
        runs = [execute(table, Exact(path), x, normal(7, 2, seed=s)) for s in (1, 2)]
        assert np.array_equal(*runs)
    # with more evaluations ρ = 1 keeps the noise but still draws z from its posterior
    table = plan_transition(path, t, t_next, rho=1.0, steps=3, solver=solver)
    runs = [execute(table, Exact(path), x, normal(7, 2, seed=s)) for s in (1, 2)]
    assert np.abs(runs[0] - runs[1]).max() > 0.1


def test_ddim_sampler_of_a_deployed_model():
    """Ten deterministic DDIM steps in a loop over timesteps, as deployed schedulers do."""
    table = stable_diffusion_table(100)
    path = DiscreteDiffusion(table)
    timesteps = list(range(99, 0, -10))
    times = [path.trained_times[99 - k] for k in timesteps] + [1.0]
    plan_ = plan(path, transitions=10, steps=1, rho=1.0, times=times)
    x = normal(6, 2)
    expected = x
    for k, after in zip(timesteps, [*timesteps[1:], None]):
        level = table[k]
        D = Mixture().denoise(expected, math.sqrt(level), math.sqrt(1 - level))
        noise = (expected - math.sqrt(level) * D) / math.sqrt(1 - level)
        following = 1.0 if after is None else table[after]
        expected = math.sqrt(following) * D + math.sqrt(1 - following) * noise
    denoiser = Exact(path)
    got = execute(plan_, denoiser, x, *[x] * 10)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-11)
    assert [path.timestep(t) for t in denoiser.times] == timesteps


# ------------------------------------------------------------------------------------- ODE


def flow(path, x, t, t_next):
    """The probability-flow ODE in the angle φ = arctan(α/σ), by DOP853.

    With x = p (sin φ z + cos φ ε), p = √(α² + σ²), the state x/p moves by
    cos φ E[z] - sin φ E[ε], whatever the path's own clock.
    """
    alpha, sigma, alpha_next, sigma_next = ends_of(path, t, t_next)
    start, stop = math.atan2(alpha, sigma), math.atan2(alpha_next, sigma_next)

    def velocity(angle, state):
        sine, cosine = math.sin(angle), math.cos(angle)
        y = state.reshape(x.shape)
        D = Mixture().denoise(y, sine, cosine)
        noise = (y - sine * D) / cosine
        return (cosine * D - sine * noise).ravel()

    solution = solve_ivp(
        velocity, (start, stop), (x / math.hypot(alpha, sigma)).ravel(), "DOP853",
        rtol=1e-9, atol=1e-10,
    )  # fmt: skip
    return math.hypot(alpha_next, sigma_next) * solution.y[:, -1].reshape(x.shape)


def velocity_flow(path, x, t, t_next):
    """dx/dt = α' D + σ' (x - α D)/σ in the path's own time, by DOP853."""

    def velocity(s, state):
        y = state.reshape(x.shape)
        D = Mixture().denoise(y, path.alpha(s), path.sigma(s))
        noise = (y - path.alpha(s) * D) / path.sigma(s)
        return (path.alpha_dot(s) * D + path.sigma_dot(s) * noise).ravel()

    solution = solve_ivp(velocity, (t, t_next), x.ravel(), "DOP853", rtol=1e-9, atol=1e-10)
    return solution.y[:, -1].reshape(x.shape)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_the_two_integrators_agree(name):
    path = PATHS[name]
    t, t_next = time_of(path, 0.4), time_of(path, 6.0)
    x = path.sigma(t) * normal(5, 2)
    np.testing.assert_allclose(
        flow(path, x, t, t_next), velocity_flow(path, x, t, t_next), rtol=0, atol=1e-8
    )


@pytest.mark.parametrize("name", first(["linear", "cosine"]))
def test_one_transition_from_noise_is_the_ode(name):
    """K = 1 from pure noise, whatever ρ says; second order in the number of evaluations."""
    path, x = PATHS[name], normal(12, 2)
    exact = velocity_flow(path, x, 0.0, 1.0 - 1e-9)
    errors = {}
    for rho in (0.3, "ode"):
        for steps in (50, 400):
            table = plan(path, transitions=1, steps=steps, rho=rho)
            got = execute(table, Exact(path), x, normal(12, 2, seed=9))
            errors[rho, steps] = np.sqrt(np.mean((got - exact) ** 2))
        assert errors[rho, 400] < 1e-4
        assert errors[rho, 400] < errors[rho, 50] / 20


def test_zero_snr_start_is_the_ode():
    path, x = PATHS["zero-snr"], normal(12, 2)
    exact = flow(path, x, 0.0, time_of(path, 20.0))
    table = plan(path, transitions=1, steps=150, rho=0.3, times=[0.0, time_of(path, 20.0)])
    got = execute(table, Exact(path), x)
    np.testing.assert_allclose(got, exact, rtol=0, atol=2e-3)


@pytest.mark.parametrize("name", first(PATHS))
@pytest.mark.parametrize("solver", first(["default", "first-order"]))
def test_ode_steps_follow_the_ode(name, solver):
    path, t, t_next = moments(name)
    x = path.sigma(t) * normal(6, 2)
    exact = flow(path, x, t, t_next)
    steps = 60 if path.trained_times is None else 40
    for transitions in (1, 3):
        times = [t, t_next]
        if transitions == 3:
            times = [t, time_of(path, 1.0), time_of(path, 1.6), t_next]
        table = plan(
            path, transitions=transitions, steps=steps, rho="ode", times=times, solver=solver
        )
        got = execute(table, Exact(path), x)
        error = np.sqrt(np.mean((got - exact) ** 2)) / max(path.sigma(t_next), 1.0)
        assert error < (2e-3 if solver == "default" else 3e-2)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "steps"), [("linear", 1), ("vp", 3)])
def test_many_transitions_at_rho_one_tend_to_the_ode(name, steps):
    """ρ = 1 with M > 1 draws z from its posterior, ever less of it as K grows."""
    path, t, t_next = moments(name)
    x = normal(6, 2)
    exact = flow(path, x, t, t_next)
    errors = []
    for transitions in (20, 160):
        times = [t + i / transitions * (t_next - t) for i in range(transitions)] + [t_next]
        table = plan(path, transitions=transitions, steps=steps, rho=1.0, times=times)
        noises = [normal(6, 2, seed=k) for k in range(transitions)]
        got = execute(table, Exact(path), x, *noises)
        errors.append(np.sqrt(np.mean((got - exact) ** 2)))
    assert errors[1] < errors[0] / 2
    assert errors[1] < 0.05


# -------------------------------------------------------------------------------- Euler-Maruyama


def flow_grpo(x, levels, noises, noise_level):
    """Flow-GRPO's SDE steps in its clock τ = 1 - t, from the network's velocity v = ε - z."""
    for i, (tau, after) in enumerate(itertools.pairwise(levels)):
        z = Mixture().denoise(x, 1 - tau, tau)
        v = (x - z) / tau  # = ε̂ - z, as x = (1-τ) z + τ ε̂
        std = noise_level * math.sqrt(tau / (1 - (levels[1] if tau == 1 else tau)))
        h = after - tau
        drift = v + std**2 / (2 * tau) * (x + (1 - tau) * v)
        x = x + drift * h + std * math.sqrt(-h) * noises[i]
    return x


@pytest.mark.parametrize("noise_level", [0.0, 0.7, 1.2])
def test_euler_maruyama_is_flow_grpo(noise_level):
    levels = [1.0, 0.8, 0.55, 0.3, 0.1, 0.0]
    x, noises = normal(7, 2), [normal(7, 2, seed=k) for k in range(1, 6)]
    table = plan(
        Linear(), transitions=5, steps=1, rho=None, times=[1 - tau for tau in levels],
        solver=EulerMaruyama(noise_level),
    )  # fmt: skip
    got = execute(table, Exact(Linear()), x, *noises)
    np.testing.assert_allclose(got, flow_grpo(x, levels, noises, noise_level), rtol=0, atol=1e-11)
    assert all(tr.stochastic == (noise_level > 0) for tr in table)
    assert all(tr.rho is None and tr.law is None and tr.free_value for tr in table)


def test_euler_maruyama_steps_are_transitions():
    """M steps of a transition are M transitions of one evaluation at equal distances in t."""
    table = plan(
        Linear(), transitions=2, steps=[3, 1], rho=None, times=[0.1, 0.7, 1.0],
        solver="euler-maruyama",
    )  # fmt: skip
    assert table.times == pytest.approx([0.1, 0.3, 0.5, 0.7, 1.0], rel=1e-14)
    assert table.times[-1] == 1.0
    assert [len(tr.rows) for tr in table] == [1, 1, 1, 1]
    x, noises = normal(7, 2), [normal(7, 2, seed=k) for k in range(1, 5)]
    got = execute(table, Exact(Linear()), x, *noises)
    expected = flow_grpo(x, [0.9, 0.7, 0.5, 0.3, 0.0], noises, 0.7)  # 0.7 is the default
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-11)
    assert table.settings["noise_level"] == 0.7


def test_euler_maruyama_reverses_the_vp_diffusion():
    """At η = √2, Song et al.'s reverse SDE: x + h [β x/2 + β score] + √(β h) n."""
    path, x, noise = PATHS["vp"], normal(7, 2), normal(7, 2, seed=1)
    for t, t_next in ((0.2, 0.35), (0.6, 0.8)):
        table = plan_transition(
            path, t, t_next, rho=None, steps=1, solver=EulerMaruyama(math.sqrt(2))
        )
        beta, h = 0.1 + (1 - t) * 19.9, t_next - t
        D = Mixture().denoise(x, path.alpha(t), path.sigma(t))
        score = (path.alpha(t) * D - x) / path.sigma(t) ** 2
        expected = x + h * (beta * x / 2 + beta * score) + math.sqrt(beta * h) * noise
        got = execute(table, Exact(path), x, noise)
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("noise_level", [0.5, math.sqrt(2)])
def test_euler_maruyama_on_edm(noise_level):
    """dσ²/dt is -2 L σ² with L = ln(σ_max/σ_min), so that g² = η² L σ²; the drift adds g²/2."""
    path, noise = PATHS["edm"], normal(7, 2, seed=1)
    t, t_next = 0.5, 0.6
    sigma, rate, h = 0.4, math.log(40000), 0.1
    assert path.sigma(t) == pytest.approx(sigma, rel=1e-12)
    x = normal(7, 2)
    score = (Mixture().denoise(x, 1.0, sigma) - x) / sigma**2
    variance = noise_level**2 * rate * sigma**2
    drift = rate * sigma**2 * score + variance / 2 * score
    table = plan_transition(path, t, t_next, rho=None, steps=1, solver=EulerMaruyama(noise_level))
    got = execute(table, Exact(path), x, noise)
    expected = x + h * drift + math.sqrt(variance * h) * noise
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["cosine", "vp", "discrete"])
def test_euler_maruyama_without_noise_is_euler(name):
    path, x = PATHS[name], normal(7, 2)
    t, t_next = time_of(path, 0.5), time_of(path, 0.8)
    table = plan_transition(path, t, t_next, rho=None, steps=1, solver=EulerMaruyama(0.0))
    D = Mixture().denoise(x, path.alpha(t), path.sigma(t))
    noise = (x - path.alpha(t) * D) / path.sigma(t)
    velocity = path.alpha_dot(t) * D + path.sigma_dot(t) * noise
    got = execute(table, Exact(path), x)
    np.testing.assert_allclose(got, x + (t_next - t) * velocity, rtol=0, atol=1e-11)


def test_euler_maruyama_has_no_rho():
    for rho in (0.4, "ddpm", "ode", DDIM(0.0)):
        with pytest.raises(InvalidArgument, match="no rho"):
            plan(Linear(), transitions=2, steps=1, rho=rho, solver="euler-maruyama")
