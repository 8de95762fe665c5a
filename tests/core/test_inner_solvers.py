"""The inner solvers of `default` and `first-order`, given the times they choose to query."""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np
import pytest

from cases import one_in
from glass_flows.paths import EDM, Linear
from glass_flows.plans import Default, FirstOrder, Paper, plan, plan_transition
from statistics_rules import (
    PATHS,
    Exact,
    covering,
    ends_of,
    execute,
    inner_problem,
    middle,
    normal,
    number,
    time_of,
)


@functools.cache
def gauss_legendre():
    return np.polynomial.legendre.leggauss(200)


def quadrature(function, low, high):
    """∫ function(q) dq by 200-point Gauss-Legendre."""
    nodes, weights = gauss_legendre()
    q = 0.5 * (high - low) * nodes + 0.5 * (high + low)
    return 0.5 * (high - low) * float(weights @ function(q))


def wiggly(x, t):
    """Not linear in anything, so that a wrong coefficient cannot hide."""
    return np.tanh(1.3 * x + t) + 0.4 * np.cos(2 * x - t)


def inner_state_input(path, time, a, x, sigma, q, u):
    """y = σ* (a x/σ + q u)/√P, the input for which (x, u) and y tell the same about z."""
    return path.sigma(time) * (a * x / sigma + q * u) / math.sqrt(a**2 + q**2)


def queried(path, transition, a):
    """The inner q of every query, from its time: a*² = a² + q²."""
    result = [0.0]
    for row in transition.rows[1:]:
        amplitude = path.alpha(row.time) / path.sigma(row.time)
        result.append(math.sqrt(amplitude**2 - a**2))
    return result


@pytest.mark.parametrize(
    ("name", "rho", "steps"), covering(PATHS, [-0.7, 0.0, 0.5, "ddpm"], [1, 2, 4])
)
def test_first_order_holds_the_denoiser(name, rho, steps):
    path, t, t_next = middle(name)
    a, sigma, gamma, _, noise = inner_problem(path, t, t_next, number(rho, path, t, t_next))
    signal = inner_problem(path, t, t_next, number(rho, path, t, t_next))[3]
    table = plan_transition(path, t, t_next, rho=rho, steps=steps, solver="first-order")
    (transition,) = table
    q = queried(path, transition, a)
    x, eps = normal(5, 2), normal(5, 2, seed=1)
    u = eps
    for i, row in enumerate(transition.rows):
        y = x if i == 0 else inner_state_input(path, row.time, a, x, sigma, q[i], u)
        following = q[i + 1] if i + 1 < steps else signal / noise
        u = u + (following - q[i]) * wiggly(y, row.time)
    got = execute(table, Exact(path, wiggly), x, eps)
    np.testing.assert_allclose(got, gamma * x + noise * u, rtol=0, atol=1e-9)


def predictor_corrector(path, transition, q0, q1, a, sigma, start, x, spread):
    """The default solver's u(q1), or the limit of u/q at q1 = ∞, by quadrature over D.

    With c = √(1/σ_data² + a²), D is linear in s = q/√(c² + q²) through the last two evaluations,
    and each corrector redoes the step just made with the D found at its end. The first predictor
    has the slope ε/c instead, as Gaussian data has, where u = ε √(1 + q²/c²) + q D on the way.
    """
    times = [row.time for row in transition.rows]
    q = [q0]
    q += [math.sqrt((path.alpha(t) / path.sigma(t)) ** 2 - a**2) for t in times[1:]]
    q.append(q1)
    c = math.hypot(1 / spread, a)

    def sine(value):
        return value / np.sqrt(c**2 + value**2)

    def step(low, high, base, slope):
        """∫ (base + slope (s - s_low)) dq, base being D at low."""
        return (high - low) * base + slope * quadrature(lambda v: sine(v) - sine(low), low, high)

    y, settled, before = x, start, None
    for i, t in enumerate(times):
        D = wiggly(y, t)
        if i == 0:
            slope = (start - q0 * D) * math.sqrt(1 + (q0 / c) ** 2) / c
            if len(times) == 1:
                slope = 0.0
        else:
            slope = (D - before) / (sine(q[i]) - sine(q[i - 1]))
            settled = settled + step(q[i - 1], q[i], before, slope)
        if i + 1 == len(times) and i > 0 and q0 == 0.0:
            # where the noise all but ends the slope through two evaluations is trusted less: by
            # 4 cos θ1, but by a half at least where there are no more than two
            cosine = 0.0 if math.isinf(q1) else c / math.hypot(c, q1)
            trust = min(1.0, max(4 * cosine, 0.5 if len(times) == 2 else 0.0))
            slope = trust * slope + (1 - trust) * start / c
        if math.isinf(q[i + 1]):
            return D + (1 - sine(q[i])) * slope
        u = settled + step(q[i], q[i + 1], D, slope)
        if i + 1 < len(times):
            y = path.sigma(times[i + 1]) * (a * x / sigma + q[i + 1] * u)
            y = y / math.hypot(a, q[i + 1])
        before = D
    return u


SHORT = [(1, 1.0), (2, 1.0), (3, 0.5), (5, 2.0)]  # evaluations, and σ_data


@pytest.mark.parametrize(("name", "rho", "short"), covering(PATHS, [-0.7, 0.0, 0.5, "ddpm"], SHORT))
def test_default_integrates_the_interpolated_denoiser(name, rho, short):
    steps, spread = short
    path, t, t_next = middle(name)
    a, sigma, gamma, signal, noise = inner_problem(path, t, t_next, number(rho, path, t, t_next))
    table = plan_transition(path, t, t_next, rho=rho, steps=steps, solver=Default(spread))
    x, eps = normal(5, 2), normal(5, 2, seed=1)
    u = predictor_corrector(
        path, table.transitions[0], 0.0, signal / noise, a, sigma, eps, x, spread
    )
    got = execute(table, Exact(path, wiggly), x, eps)
    np.testing.assert_allclose(got, gamma * x + noise * u, rtol=0, atol=1e-8)


@pytest.mark.parametrize(("name", "rho", "short"), covering(PATHS, [-1.0, 1.0, 0.4], SHORT))
def test_default_closes_where_the_noise_ends(name, rho, short):
    steps, spread = short
    path, t, t_next = middle(name)
    t_next = 1.0 if rho == 0.4 else t_next
    a, sigma, gamma, signal, _ = inner_problem(path, t, t_next, rho)
    table = plan_transition(path, t, t_next, rho=rho, steps=steps, solver=Default(spread))
    x, eps = normal(5, 2), normal(5, 2, seed=1)
    D = predictor_corrector(path, table.transitions[0], 0.0, math.inf, a, sigma, eps, x, spread)
    got = execute(table, Exact(path, wiggly), x, eps)
    np.testing.assert_allclose(got, gamma * x + signal * D, rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize(("steps", "spread"), SHORT)
def test_default_on_the_ode(name, steps, spread):
    """The inner state is x/σ, q the path's own amplitude; from noise the ε is x_0/σ_0."""
    path, t, t_next = middle(name)
    x, alpha, sigma, alpha_next, sigma_next = normal(5, 2), *ends_of(path, t, t_next)
    for end in (t_next, 1.0):
        table = plan_transition(path, t, end, rho="ode", steps=steps, solver=Default(spread))
        q1 = alpha_next / sigma_next if end < 1.0 else math.inf
        u = predictor_corrector(
            path, table.transitions[0], alpha / sigma, q1, 0.0, sigma, x / sigma, x, spread
        )
        got = execute(table, Exact(path, wiggly), x)
        expected = u if end == 1.0 else sigma_next * u
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-8)
    if path.alpha(0.0) == 0.0:
        table = plan(path, transitions=1, steps=steps, rho=0.3, solver=Default(spread))
        u = predictor_corrector(path, table.transitions[0], 0.0, math.inf, 0.0, 1.0, x, x, spread)
        np.testing.assert_allclose(execute(table, Exact(path, wiggly), x), u, rtol=0, atol=1e-8)


@pytest.mark.parametrize("solver", [Default(), Default(sigma_data=0.6), "first-order"])
@pytest.mark.parametrize("ending", ["data", "rho = 1", "rho = -1", "ode to data"])
def test_infinite_ends_are_the_limit_of_finite_ones(solver, ending):
    """σ̄ = 0 puts the end of the inner flow at q = ∞; the result must be that of nearly so.

    A step that is taken only where q1 is exactly infinite is a jump, and fails here.
    """
    for name in ("linear", "cosine"):
        path = PATHS[name]
        small = 1e-7
        exact = {
            "data": (0.3, 1.0, 0.4),
            "rho = 1": (0.3, 0.7, 1.0),
            "rho = -1": (0.3, 0.7, -1.0),
            "ode to data": (0.3, 1.0, "ode"),
        }[ending]
        t, t_next, rho = exact
        near = (t, t_next - small if t_next == 1.0 else t_next, rho)
        if ending.startswith("rho"):
            near = (t, t_next, rho * (1 - small**2))
        for steps in (1, 2, 4):
            at, close = (
                plan_transition(path, e[0], e[1], rho=e[2], steps=steps, solver=solver)
                for e in (exact, near)
            )
            x, eps = normal(6, 2), normal(6, 2, seed=1)
            results = [execute(table, Exact(path, wiggly), x, eps) for table in (at, close)]
            np.testing.assert_allclose(*results, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("solver", ["default", "first-order"])
@pytest.mark.parametrize("rho", one_in(3, [-0.7, 0.4, 1.0, "ddpm"]))
def test_the_first_query_is_the_free_value(name, solver, rho):
    """Before any randomness the network is asked about x itself, at its own time."""
    path = PATHS[name]
    for t, t_next in ((time_of(path, 0.5), time_of(path, 2.5)), (time_of(path, 0.5), 1.0)):
        table = plan_transition(path, t, t_next, rho=rho, steps=3, solver=solver)
        denoiser, x = Exact(path), normal(5, 2)
        execute(table, denoiser, x, normal(5, 2, seed=1))
        assert denoiser.times[0] == t
        assert np.array_equal(denoiser.inputs[0], x)
        assert table.transitions[0].free_value


def test_the_paper_from_a_cut_range_has_no_free_value():
    assert (
        plan_transition(Linear(), 0.3, 0.7, rho=0.4, steps=3, solver="paper")
        .transitions[0]
        .free_value
    )
    cut = plan_transition(
        Linear(), 0.3, 0.7, rho=0.4, steps=3, solver=Paper(s_range=(0.001, 0.999))
    )
    assert not cut.transitions[0].free_value


@pytest.mark.parametrize("ending", ["noise", "data"])
@pytest.mark.parametrize("spread", [0.5, 1.0])
def test_where_the_queries_are(ending, spread):
    """The only test that knows the grids, in θ = arctan(q/c).

    First-order: uniform. Default: the first and last of the steps are 0.6 of the others up to three
    evaluations, then before an end at data 0.7 and 0.9; the grid is uniform in (1 - 2θ/π)^(1/w), w
    growing from 1 at four evaluations to 1.3 from seven to twenty, and falling to 1 at forty.
    """
    t, t_next, rho = 0.3, 0.7 if ending == "noise" else 1.0, 0.4
    a, _, _, signal, noise = inner_problem(Linear(), t, t_next, rho)
    c = math.hypot(1 / spread, a)
    last = math.atan(signal / noise / c) if noise > 0 else math.pi / 2

    def angles(solver, steps):
        (transition,) = plan_transition(Linear(), t, t_next, rho=rho, steps=steps, solver=solver)
        return [math.atan(q / c) for q in queried(Linear(), transition, a)]

    assert angles(FirstOrder(spread), 4) == pytest.approx([last * i / 4 for i in range(4)])
    warps = {2: 1.0, 3: 1.0, 4: 1.0, 5: 1.1, 7: 1.3, 8: 1.3, 20: 1.3, 30: 1.15, 40: 1.0, 41: 1.0}
    for steps, warp in warps.items():
        first_step, last_step = (0.7, 0.9) if steps > 3 and ending == "data" else (0.6, 0.6)
        lengths = np.array([first_step, *[1.0] * (steps - 2), last_step])
        shares = np.concatenate([[0.0], np.cumsum(lengths)[:-1]]) / lengths.sum()
        end = (1 - 2 * last / math.pi) ** (1 / warp)
        expected = math.pi / 2 * (1 - (1 + shares * (end - 1)) ** warp)
        assert angles(Default(spread), steps) == pytest.approx(list(expected), abs=1e-9)


@pytest.mark.parametrize("steps", [4, 6, 9])
def test_where_the_ode_asks(steps):
    """An ODE step starts at q0 = a_t > 0; the grid is uniform in (1 - 2θ/π)^(1/w) from there."""
    spread, t, t_next = 0.5, 0.3, 0.8
    c, warp = 1 / spread, 1 + 0.3 * min((steps - 4) / 3, 1)
    (transition,) = plan_transition(
        Linear(), t, t_next, rho="ode", steps=steps, solver=Default(spread)
    )
    first, last = (1 - 2 / math.pi * math.atan(s / (1 - s) / c) for s in (t, t_next))
    lengths = np.array([0.6, *[1.0] * (steps - 2), 0.6])
    shares = np.concatenate([[0.0], np.cumsum(lengths)[:-1]]) / lengths.sum()
    roots = first ** (1 / warp) * (1 - shares) + last ** (1 / warp) * shares
    expected = c * np.tan(math.pi / 2 * (1 - roots**warp))
    asked = [row.time / (1 - row.time) for row in transition.rows]
    assert asked == pytest.approx(list(expected), rel=1e-9)


def test_grids_that_end_with_the_path():
    """Queries beyond EDM's σ_min do not exist: the grid keeps its shape up to the path's end."""
    path = EDM(0.5, 8.0)
    for solver in ("default", "first-order"):
        (transition,) = plan_transition(path, 0.2, 1.0, rho=0.4, steps=12, solver=solver)
        times = [row.time for row in transition.rows]
        assert transition.note == "queries end with the path"
        assert times[-1] == pytest.approx(1.0, abs=1e-9)
        assert all(a < b for a, b in itertools.pairwise(times))
        (one,) = plan_transition(path, 0.2, 1.0, rho=0.4, steps=2, solver=solver)
        assert one.note == ""
        (at_end,) = plan_transition(path, 1 - 1e-12, 1.0, rho=0.4, steps=5, solver=solver)
        assert len(at_end.rows) <= 5
