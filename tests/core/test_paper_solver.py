"""The `paper` solver against Algorithm 1 of arXiv 2509.25170, written out with 2×2 matrices."""

from __future__ import annotations

import cmath
import math

import numpy as np
import pytest
from scipy.optimize import brentq

from cases import one_in
from glass_flows.errors import InvalidArgument, PlanError
from glass_flows.paths import EDM
from glass_flows.plans import Paper, plan, plan_transition
from statistics_rules import PATHS, Exact, covering, ends_of, execute, normal, time_of

RHOS = [-0.9, -0.6, -0.3, 0.0, 0.2, 0.5, 0.8, 1.0, "ddpm"]


def wiggly(x, t):
    """A denoiser whose every input matters; Algorithm 1 asks nothing else of it."""
    return np.tanh(1.3 * x + t) + 0.4 * np.cos(2 * x - t)


def linear(s, signal, noise, sigma0):
    return signal * s, (1 - s) * sigma0 + s * noise


def cosine(s, signal, noise, sigma0):
    angle = 0.5 * math.pi * s
    return signal * cmath.sin(angle), noise + (sigma0 - noise) * cmath.cos(angle)


def quadratic(s, signal, noise, sigma0):
    return signal * (s + 2 * s**2) / 3, sigma0 * (1 - s**2) + noise * s**2


def custom(s, kernel, sigma0):
    """`quadratic` as the option wants it, with derivatives by hand."""
    return (
        kernel.alpha_bar * (s + 2 * s**2) / 3,
        sigma0 * (1 - s**2) + kernel.sigma_bar * s**2,
        kernel.alpha_bar * (1 + 4 * s) / 3,
        2 * s * (kernel.sigma_bar - sigma0),
    )


def schedule_at(schedule, s, *numbers):
    """(ᾱ_s, σ̄_s, ᾱ_s', σ̄_s'), the derivatives by a complex step, exact to rounding."""
    step = 1e-30
    alpha_bar, sigma_bar = (complex(v) for v in schedule(s + 1j * step, *numbers))
    return alpha_bar.real, sigma_bar.real, alpha_bar.imag / step, sigma_bar.imag / step


def time_of_precision(path, precision):
    """t* with α²/σ² = precision, by root finding on the angle arctan(α/σ); None beyond the end."""
    angle = math.atan(math.sqrt(precision))

    def excess(t):
        return math.atan2(path.alpha(t), path.sigma(t)) - angle

    if excess(1.0) < 0:
        return None
    return 0.0 if excess(0.0) >= 0 else brentq(excess, 0.0, 1.0, xtol=1e-16, rtol=1e-15)


def algorithm_1(
    path, t, t_next, rho, steps, x, eps, *, schedule=linear, sigma0=1.0, s_range=(0.0, 1.0),
    off_grid="fractional",
):  # fmt: skip
    alpha, sigma, alpha_next, sigma_next = ends_of(path, t, t_next)
    if rho == "ddpm":
        rho = alpha * sigma_next / (sigma * alpha_next)
    gamma = rho * sigma_next / sigma
    numbers = (alpha_next - gamma * alpha, sigma_next * math.sqrt(1 - rho**2), sigma0)
    inner = gamma * x + sigma0 * eps  # x̄ at the start
    h = (s_range[1] - s_range[0]) / steps
    for i in range(steps):
        s = s_range[0] + i * h
        alpha_bar, sigma_bar, alpha_dot, sigma_dot = schedule_at(schedule, s, *numbers)
        # (x_t, x̄_s) as one Gaussian measurement of z
        mean = np.array([alpha, alpha_bar + gamma * alpha])
        covariance = np.array(
            [
                [sigma**2, gamma * sigma**2],
                [gamma * sigma**2, sigma_bar**2 + gamma**2 * sigma**2],
            ]
        )
        weights = np.linalg.solve(covariance, mean)
        precision = float(mean @ weights)
        statistic = (weights[0] * x + weights[1] * inner) / precision
        asked = time_of_precision(path, precision)
        if asked is None:  # more is known than at the path's last time: its input has this signal
            D = wiggly(path.alpha(1.0) * statistic, 1.0)
        elif path.trained_times is not None and off_grid == "nearest":
            # the nearest trained time; its input has that time's noise power
            near = min(path.trained_times, key=lambda known: abs(known - asked))
            D = wiggly(path.sigma(near) * math.sqrt(precision) * statistic, near)
        else:
            D = wiggly(path.alpha(asked) * statistic, asked)
        w1 = sigma_dot / sigma_bar
        w2 = alpha_dot - alpha_bar * w1
        w3 = -gamma * w1
        inner = inner + h * (w1 * inner + w2 * D + w3 * x)
    return inner


def compare(name, t, t_next, rho, steps, *, schedule=linear, option="linear", **settings):
    path = PATHS[name] if isinstance(name, str) else name
    x, eps = normal(6, 2), normal(6, 2, seed=1)
    x = x * max(1.0, path.sigma(t))  # of the size that this path's states have
    table = plan_transition(
        path, t, t_next, rho=rho, steps=steps, solver=Paper(schedule=option, **settings)
    )
    got = execute(table, Exact(path, wiggly), x, eps)
    expected = algorithm_1(path, t, t_next, rho, steps, x, eps, schedule=schedule, **settings)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("name", "rho", "steps"), one_in(3, covering(PATHS, RHOS, [1, 2, 7])))
def test_whole_range(name, rho, steps):
    path = PATHS[name]
    t = time_of(path, 0.5)
    for t_next in (time_of(path, 2.5), 1.0):
        compare(name, t, t_next, rho, steps)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("rho", one_in(4, RHOS))
def test_range_of_the_reference_code(name, rho):
    path = PATHS[name]
    t = time_of(path, 0.5)
    for t_next in (time_of(path, 2.5), 1.0):
        compare(name, t, t_next, rho, 5, s_range=(0.001, 0.999))


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("rho", one_in(4, RHOS))
def test_from_noise(name, rho):
    """At t = 0 the solver keeps its ρ and draws a fresh ε; s starts above 0."""
    for t_next in (time_of(PATHS[name], 0.8), 1.0):
        compare(name, 0.0, t_next, rho, 4, s_range=(0.001, 0.999))
        compare(name, 0.0, t_next, rho, 3, s_range=(0.02, 1.0))


@pytest.mark.parametrize(
    ("name", "rho", "sigma0"), covering(PATHS, [-0.9, 0.4, 1.0, "ddpm"], [0.3, 2.5])
)
def test_other_starting_noise(name, rho, sigma0):
    path = PATHS[name]
    t, t_next = time_of(path, 0.5), time_of(path, 2.5)
    compare(name, t, t_next, rho, 4, sigma0=sigma0)
    compare(name, t, 1.0, rho, 4, sigma0=sigma0, s_range=(0.001, 0.999))


@pytest.mark.parametrize(
    ("name", "rho", "shape", "sigma0"),
    covering(
        PATHS, [-0.9, 0.4, 1.0, "ddpm"], [(cosine, "cosine"), (quadratic, custom)], [1.0, 0.6]
    ),
)
def test_other_schedules(name, rho, shape, sigma0):
    schedule, option = shape
    path = PATHS[name]
    t, t_next = time_of(path, 0.5), time_of(path, 2.5)
    settings = {"schedule": schedule, "option": option, "sigma0": sigma0}
    compare(name, t, t_next, rho, 4, **settings)
    compare(name, t, 1.0, rho, 4, s_range=(0.001, 0.999), **settings)
    compare(name, 0.0, t_next, rho, 4, s_range=(0.001, 0.999), **settings)


@pytest.mark.parametrize("name", ["discrete", "zero-snr"])
@pytest.mark.parametrize("rho", one_in(3, RHOS))
@pytest.mark.parametrize("off_grid", ["fractional", "nearest"])
def test_off_grid_rules(name, rho, off_grid):
    path = PATHS[name]
    t = time_of(path, 0.5)
    for t_next in (time_of(path, 2.5), 1.0):
        compare(name, t, t_next, rho, 6, off_grid=off_grid)
    compare(name, 0.0, t_next, rho, 6, off_grid=off_grid, s_range=(0.001, 0.999))


@pytest.mark.parametrize("name", ["discrete", "zero-snr"])
@pytest.mark.parametrize("off_grid", ["fractional", "nearest"])
@pytest.mark.parametrize("rho", [-0.5, 0.4, 1.0])
def test_off_grid_rules_hold_for_the_first_query_too(name, off_grid, rho):
    """A start between trained times, which the other solvers refuse."""
    t = time_of(PATHS[name], 0.5) + 0.0007
    compare(name, t, 1.0, rho, 3, off_grid=off_grid)


def test_nearest_asks_trained_times_only():
    path = PATHS["discrete"]
    t = time_of(path, 0.5)
    for off_grid, trained_only in (("nearest", True), ("fractional", False)):
        table = plan_transition(path, t, 1.0, rho=0.4, steps=9, solver=Paper(off_grid=off_grid))
        asked = [row.time for row in table.transitions[0].rows]
        assert asked[0] == t
        assert all(time in path.trained_times for time in asked) == trained_only


@pytest.mark.parametrize("rho", [-0.9, 0.4, 1.0])
def test_beyond_the_end_of_the_path(rho):
    """EDM ends at σ_min: what is known beyond it is asked for at σ_min with its signal kept."""
    compare(EDM(0.2, 20.0), 0.4, 1.0, rho, 40)


def test_first_query_at_pure_noise_by_its_limit():
    """At α_0 = 0 and s = 0 Algorithm 1 reads 0/0; the network is asked about x_0 itself."""
    path, x, eps = PATHS["linear"], normal(6, 2), normal(6, 2, seed=1)
    for rho in (-0.9, 0.4, 1.0):
        table = plan_transition(path, 0.0, 0.6, rho=rho, steps=4, solver="paper")
        denoiser = Exact(path, wiggly)
        got = execute(table, denoiser, x, eps)
        assert denoiser.times[0] == 0.0
        assert np.array_equal(denoiser.inputs[0], x)
        D, s1 = wiggly(x, 0.0), 0.25
        gamma = rho * 0.4
        noise, signal = 0.4 * math.sqrt(1 - rho**2), 0.6
        # one Euler step by hand, then Algorithm 1 on the three that are left
        inner = eps + s1 * ((noise - 1) * eps + signal * D)
        h = 0.25
        for i in (1, 2, 3):
            s = i * h
            level = (1 - s) + s * noise
            q = s * signal / level
            y = (1 - q / (1 + q)) * q * (inner / level) / q
            D = wiggly(y, q / (1 + q))
            slope = (noise - 1) / level
            inner = inner + h * (slope * inner + (signal - slope * s * signal) * D)
        np.testing.assert_allclose(got, gamma * x + inner, rtol=0, atol=1e-12)


def test_every_transition_of_a_plan_draws_its_own_noise():
    """K transitions of Algorithm 1, one after the other, with ρ and M of their own."""
    path, x = PATHS["cosine"], normal(6, 2)
    noises = [normal(6, 2, seed=k) for k in (1, 2, 3)]
    times, rhos, steps = (0.2, 0.5, 0.7, 1.0), (-0.4, "ddpm", 0.9), (3, 1, 4)
    table = plan(path, transitions=3, steps=steps, rho=rhos, times=times, solver="paper")
    expected = x
    for k in range(3):
        expected = algorithm_1(path, times[k], times[k + 1], rhos[k], steps[k], expected, noises[k])
    got = execute(table, Exact(path, wiggly), x, *noises)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-10)


def test_settings_are_written_down():
    config = Paper(sigma0=0.5, s_range=(0.001, 0.999), schedule=custom).config()
    assert config == {
        "solver": "paper", "sigma0": 0.5, "s_range": [0.001, 0.999], "schedule": "custom",
        "off_grid": "fractional",
    }  # fmt: skip
    assert Paper().config()["schedule"] == "linear"
    with pytest.raises(InvalidArgument):
        Paper(s_range=(0.1, 0.5, 0.9))


def test_a_range_given_as_a_list_is_the_same_solver():
    assert Paper(s_range=[0, 1]) == Paper() and Paper(s_range=[0.1, 0.9]).s_range == (0.1, 0.9)
    solver = Paper(s_range=[0, 1])
    table = plan_transition(PATHS["linear"], 0.3, 1.0, rho=0.2, steps=3, solver=solver)
    assert table.transitions[0].law == 0.0  # the whole range keeps its exact law


def own_noise(s, kernel, sigma0):
    """Starts at a noise of its own, 0.4, whatever σ̄_0 is."""
    alpha_bar, sigma_bar = kernel.alpha_bar, kernel.sigma_bar
    return s * alpha_bar, 0.4 + s * (sigma_bar - 0.4), alpha_bar, sigma_bar - 0.4


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("s_range", [(0.0, 1.0), (0.001, 0.999)])
def test_a_schedule_of_ones_own_starts_at_its_own_noise(name, s_range):
    """The same as the linear one from there; it started at σ̄_0 once, whatever the schedule said."""
    path = PATHS[name]
    t = time_of(path, 0.5)
    for t_next in (time_of(path, 2.5), 1.0):
        own = Paper(schedule=own_noise, s_range=s_range)
        same = Paper(sigma0=0.4, s_range=s_range)
        x, eps = normal(6, 2), normal(6, 2, seed=1)
        drawn = [
            execute(
                plan_transition(path, t, t_next, rho=0.3, steps=4, solver=solver),
                Exact(path, wiggly), x, eps,
            )
            for solver in (own, same)
        ]  # fmt: skip
        np.testing.assert_allclose(*drawn, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda s, a, b, da, db: (a + 0.1, b, da, db), r"alpha\(0\) = 0.1; it must be 0"),
        (lambda s, a, b, da, db: (a * 2, b, da * 2, db), r"alpha\(1\) = "),
        (lambda s, a, b, da, db: (a, b + 0.1, da, db), r"sigma\(1\) = "),
        (lambda s, a, b, da, db: (a, b, -da, db), r"the slope of alpha at 0.25 = "),
        (lambda s, a, b, da, db: (a, b, da, 0.0), r"the slope of sigma at 0.25 = "),
        (lambda s, a, b, da, db: (a, b, da + (s == 0.5), db), r"the slope of alpha at 0.5 = "),
        (lambda s, a, b, da, db: (a, b, da, db + (s == 0.75)), r"the slope of sigma at 0.75 = "),
        (lambda s, a, b, da, db: (a, b if s else math.inf, da, db), r"sigma\(0\) = inf; it must"),
        (lambda s, a, b, da, db: (a, s * b, da, b + s * db), r"sigma\(0\) = 0.0; it must be pos"),
        (lambda s, a, b, da, db: (a, b), "must return 4 numbers"),
        (lambda s, a, b, da, db: (a, 1 / s, da, db), "must return 4 numbers"),
        (lambda s, a, b, da, db: (a, b, "x", db), "must return 4 numbers"),
    ],
)
def test_a_schedule_that_contradicts_itself_is_refused(change, match):
    def schedule(s, kernel, sigma0):
        return change(s, *custom(s, kernel, sigma0))

    with pytest.raises(PlanError, match=match):
        plan_transition(
            PATHS["linear"], 0.3, 0.8, rho=0.2, steps=3, solver=Paper(schedule=schedule)
        )
