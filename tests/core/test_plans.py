"""Plans: kernels, tables, self-checks, and the inner solvers against independent mathematics."""

from __future__ import annotations

import dataclasses
import decimal
import itertools
import json
import math
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from cases import fast, first, one_in
from glass_flows.errors import InvalidArgument, PlanError, TimeError, UnknownName
from glass_flows.paths import EDM, Cosine, DiscreteDiffusion, Linear, VariancePreserving
from glass_flows.plans import (
    DDIM,
    Default,
    Ends,
    EulerMaruyama,
    FirstOrder,
    Kernel,
    Mix,
    Paper,
    Row,
    Table,
    plan,
    plan_transition,
    resolve_rho,
)
from glass_flows.plans.kernels import RHO_RULES
from glass_flows.plans.planner import for_each
from glass_flows.plans.solvers import SOLVERS, _Sphere
from glass_flows.registry import Registry
from statistics_rules import (
    PATHS,
    Exact,
    Mixture,
    covering,
    ddpm_rho,
    ends_of,
    execute,
    inner_problem,
    middle,
    normal,
    number,
    time_of,
)

RHOS = [-1.0, -0.9, -0.4, 0.0, 0.35, 0.8, 1.0, "ddpm", DDIM(0.3)]


# --------------------------------------------------------------------------------------- kernels


@pytest.mark.parametrize("rho", [-1.0, -0.6, 0.0, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("name", PATHS)
def test_kernel(name, rho):
    path, t, t_next = middle(name)
    alpha, sigma, alpha_next, sigma_next = ends_of(path, t, t_next)
    kernel = Kernel.of(Ends.of(path, t, t_next), rho)
    assert kernel.gamma == pytest.approx(rho * sigma_next / sigma, rel=1e-14)
    assert kernel.alpha_bar == pytest.approx(alpha_next - kernel.gamma * alpha, rel=1e-14)
    assert kernel.sigma_bar == pytest.approx(sigma_next * math.sqrt(1 - rho**2), rel=1e-13)
    # given z the law of x' is the path's own, and the noises correlate by ρ
    assert kernel.gamma * alpha + kernel.alpha_bar == pytest.approx(alpha_next, rel=1e-14)
    assert kernel.gamma**2 * sigma**2 + kernel.sigma_bar**2 == pytest.approx(sigma_next**2)
    assert kernel.gamma * sigma**2 / (sigma * sigma_next) == pytest.approx(rho, abs=1e-15)


def test_kernel_by_hand():
    """Linear, 0.25 → 0.5, ρ = 0.6: γ = 0.6 · 0.5/0.75 = 0.4, ᾱ = 0.5 - 0.1, σ̄ = 0.5 · 0.8."""
    ends = Ends.of(Linear(), 0.25, 0.5)
    assert (ends.alpha, ends.sigma, ends.alpha_next, ends.sigma_next) == (0.25, 0.75, 0.5, 0.5)
    assert dataclasses.astuple(Kernel.of(ends, 0.6)) == pytest.approx((0.4, 0.4, 0.4), rel=1e-15)
    assert ends.rho_ddpm == pytest.approx(1 / 3, rel=1e-15)
    assert ends.amplitude == pytest.approx(1 / 3, rel=1e-15)


def test_small_renewal_keeps_its_digits():
    """1 - ρ² by subtraction loses half of σ̄'s digits at ρ = 1 - 1e-15."""
    rho = 1 - 2.0**-50
    exact = 0.5 * math.sqrt(2.0**-49 - 2.0**-100)
    assert Kernel.of(Ends.of(Linear(), 0.25, 0.5), rho).sigma_bar == pytest.approx(exact, rel=1e-15)


def test_the_end_is_data_on_every_path():
    for path in PATHS.values():
        ends = Ends.of(path, time_of(path, 0.5), 1.0)
        assert (ends.alpha_next, ends.sigma_next, ends.rho_ddpm) == (1.0, 0.0, 0.0)


@pytest.mark.parametrize("eta", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("name", PATHS)
def test_ddim_rho_scales_the_noise_of_ddpm(name, eta):
    path, t, t_next = middle(name)
    ends = Ends.of(path, t, t_next)
    rho = resolve_rho(DDIM(eta), ends)
    assert 0.0 <= rho <= 1.0
    ddpm = Kernel.of(ends, resolve_rho("ddpm", ends)).sigma_bar
    assert Kernel.of(ends, rho).sigma_bar == pytest.approx(eta * ddpm, rel=1e-12)
    assert resolve_rho("ddpm", ends) == pytest.approx(ddpm_rho(path, t, t_next), rel=1e-14)


def test_rho_callables_lists_and_errors():
    ends = Ends.of(Linear(), 0.25, 0.5)
    assert resolve_rho(lambda t, t_next: t - 2 * t_next, ends) == -0.75
    assert resolve_rho(-1, ends) == -1.0
    for bad in (
        1.0000001,
        -1.0000001,
        math.nan,
        None,
        object(),
        lambda t, s: 2.0,
        lambda t, s: None,
    ):
        with pytest.raises(InvalidArgument, match=r"rho must lie in \[-1, 1\]"):
            resolve_rho(bad, ends)
    with pytest.raises(UnknownName, match="'ddpm'"):
        resolve_rho("dpm", ends)
    for eta in (-0.1, 1.1, math.nan, "x", None):
        with pytest.raises(InvalidArgument, match="eta"):
            DDIM(eta)
    assert DDIM() == DDIM(0.0)
    assert for_each("rho", 0.5, 3) == (0.5, 0.5, 0.5)
    assert for_each("rho", "ddpm", 2) == ("ddpm", "ddpm")
    assert for_each("rho", (0.1, "ddpm"), 2) == (0.1, "ddpm")
    assert for_each("rho", DDIM(0.2), 2) == (DDIM(0.2), DDIM(0.2))
    with pytest.raises(InvalidArgument, match="rho lists 2 values for 3"):
        plan(Linear(), transitions=3, steps=1, rho=[0.1, 0.2])


class Lasting:
    def rho(self, ends):
        return 0.5


@pytest.mark.parametrize("rule", [lambda ends: 0.5, Lasting], ids=["function", "class"])
def test_a_rule_is_a_function_or_a_class_with_one(rule):
    assert Registry("rules", {}, RHO_RULES.check).register("own", rule) is rule


@pytest.mark.parametrize("thing", [0.5, Lasting(), Ends], ids=["number", "instance", "other class"])
def test_what_is_no_rule_is_not_registered(thing):
    with pytest.raises(InvalidArgument, match="the rho rule 'own' must be"):
        Registry("rules", {}, RHO_RULES.check).register("own", thing)


@pytest.mark.parametrize("solver", ["default", "first-order", "paper"])
def test_tables_hold_their_kernel(solver):
    table = plan(
        Linear(), transitions=2, steps=[1, 3], rho=[0.1, -0.6], times=[0.25, 0.5, 0.75],
        solver=solver,
    )  # fmt: skip
    first, second = table
    kernel = (second.rho, second.gamma, second.alpha_bar, second.sigma_bar)
    assert kernel == pytest.approx((-0.6, -0.3, 0.75 + 0.15, 0.25 * 0.8), rel=1e-14)
    ends = (second.alpha, second.sigma, second.alpha_next, second.sigma_next)
    assert ends == (0.5, 0.5, 0.75, 0.25)
    assert (first.rho, first.t, first.t_next, len(first.rows)) == (0.1, 0.25, 0.5, 1)
    assert table.times == (0.25, 0.5, 0.75)
    assert (len(table), table.evaluations, second.evaluations) == (2, 4, 3)


# ---------------------------------------------------------- every table, over a wide sweep of plans


rho_numbers = st.one_of(st.sampled_from([-1.0, 1.0, 0.0]), st.floats(-1.0, 1.0))
rho_any = st.one_of(
    rho_numbers,
    st.just("ddpm"),
    st.just("ode"),
    st.floats(0.0, 1.0).map(DDIM),
    st.just(lambda t, t_next: t_next - 2 * t),
)
solvers = st.one_of(
    st.sampled_from(["default", "first-order", "paper"]),
    st.builds(Default, sigma_data=st.floats(0.05, 3.0)),
    st.builds(FirstOrder, sigma_data=st.floats(0.05, 3.0)),
    st.builds(
        Paper,
        sigma0=st.floats(0.1, 5.0),
        s_range=st.sampled_from([(0.0, 1.0), (0.001, 0.999)]),
        schedule=st.sampled_from(["linear", "cosine"]),
        off_grid=st.sampled_from(["fractional", "nearest"]),
    ),
)


def on_trained_times(path, times):
    """Whether what the network is told are integer timesteps, within rounding of trained times."""
    told = [path.timestep(t) for t in times]
    near = [min(abs(t - trained) for trained in path.trained_times) for t in times]
    return all(k == int(k) >= 0 for k in told) and max(near) < 1e-12


def mixes(transition):
    yield transition.input
    for row in transition.rows:
        yield from (mix for mix in (row.update, row.emit) if mix is not None)


@pytest.mark.slow
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(data=st.data())
def test_every_plan_is_finite_verified_and_survives_json(data):
    name = data.draw(st.sampled_from(sorted(PATHS)), label="path")
    path, transitions = PATHS[name], data.draw(st.integers(1, 5), label="K")
    solver = data.draw(solvers, label="solver")
    each = data.draw(st.booleans(), label="lists")
    rho = data.draw(st.lists(rho_any, min_size=transitions, max_size=transitions)) if each else (
        data.draw(rho_any, label="rho")
    )  # fmt: skip
    steps = data.draw(st.integers(1, 12), label="M")
    if each:
        steps = data.draw(st.lists(st.integers(1, 12), min_size=transitions, max_size=transitions))
    start = data.draw(st.sampled_from(["trained", "pure"]), label="start")
    times = data.draw(st.sampled_from([None, "shifted", "karras"]), label="times")
    is_paper = solver == "paper" or isinstance(solver, Paper)
    rules = rho if each else [rho]
    assume(not (is_paper and any(rule == "ode" for rule in rules)))
    assume(not (is_paper and start == "pure" and path.alpha(0.0) > 0))  # refused, see below
    # Algorithm 1 divides by what x and the inner state know of z, which is 0 at α_0 = 0, s = 0:
    # its first query is D_0(x) there, by its limit.
    table = plan(
        path, transitions=transitions, steps=steps, rho=rho, times=times, solver=solver, start=start
    )
    for transition in table:
        transition.verify(path)
        assert 1 <= len(transition.rows) <= 12
        for mix in mixes(transition):
            assert all(math.isfinite(v) for v in dataclasses.astuple(mix))
        assert all(0.0 <= row.time <= 1.0 for row in transition.rows)
        if not is_paper:
            asked = [row.time for row in transition.rows]
            assert asked[0] == transition.t
            assert transition.free_value
            if path.trained_times is not None:
                assert on_trained_times(path, asked)
                assert all(a < b for a, b in itertools.pairwise(asked))
            # where a path stops short of noise or data, queries may gather at its end
            assert all(a <= b for a, b in itertools.pairwise(asked))
    assert table.times[0] == 0.0
    assert table.times[-1] == 1.0
    again = Table.from_json(table.to_json())
    assert again.transitions == table.transitions
    assert again.path == table.path
    assert again.start == table.start
    assert again.to_json() == table.to_json()
    assert str(table.evaluations) in str(again)


@pytest.mark.parametrize("sigma_data", first([0.3, 1.0, 2.6875, 10.0]))
@pytest.mark.parametrize("amplitude", [50.0, 500.0, 5000.0])
@pytest.mark.parametrize("path", [Linear(), Cosine(), EDM(1e-6), VariancePreserving()], ids=repr)
def test_starts_near_data_keep_their_digits(path, amplitude, sigma_data):
    """There sin θ is within 1e-7 of 1 and 1 - 2θ/π near 0: neither survives a subtraction.

    Every plan verifies itself. On the VP path 1 - t is as σ², so that no float t has an amplitude
    of 1e5 to more than 8 digits; few evaluations stay below.
    """
    t = path.time(amplitude)
    counts = (2,) if path == VariancePreserving() and amplitude > 500 else (2, 3, 10)
    for t_next, steps, rho in covering(
        (path.time(1.1 * amplitude), path.time(7 * amplitude), 1.0),
        counts,
        ("ode", "ddpm", -1.0, 0.0, 0.5, 1.0),
    ):
        table = plan_transition(
            path, t, t_next, rho=rho, steps=steps, solver=Default(sigma_data=sigma_data)
        )
        (transition,) = table
        assert transition.law == sigma_data
        asked = [row.time for row in transition.rows]
        assert all(before < after for before, after in itertools.pairwise(asked))


def test_the_plan_that_lost_its_digits():
    """Its last transition is an ODE from amplitude 500 to data (found by the sweep above)."""
    plan(
        Cosine(),
        transitions=3,
        steps=[1, 1, 10],
        rho=["ddpm", "ddpm", "ode"],
        times="karras",
        solver=Default(sigma_data=2.6875),
    )


def integrals(c, base, start, stop):
    """∫ dq and ∫ (s - s_base) dq from start to stop, s = q/√(c² + q²); per q where stop = ∞."""
    c, base, start, stop = map(Decimal, (c, base, start, stop))

    def root(q):
        return (c * c + q * q).sqrt()

    if stop.is_infinite():
        return Decimal(1), 1 - base / root(base)
    return stop - start, root(stop) - root(start) - base / root(base) * (stop - start)


def digits_agree(got, expected, scale=0):
    assert abs(Decimal(got) - expected) <= Decimal("1e-13") * max(abs(expected), scale)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(
    c=st.floats(1e-3, 1e6),
    low=st.floats(1e-9, 1e9),
    grow=st.lists(st.floats(1.001, 1e3), min_size=2, max_size=2),
    from_zero=st.booleans(),
    to_infinity=st.booleans(),
)
def test_steps_keep_their_digits_everywhere(c, low, grow, from_zero, to_infinity):
    """The integrals of the inner sphere at all its angles, against 80 digits."""
    sphere = _Sphere(c)
    qa, qb = 0.0 if from_zero else low, low * grow[0]
    end = math.inf if to_infinity else qb * grow[1]
    with decimal.localcontext() as context:
        context.prec = 80
        # D linear in s through D_prev at qa and D at qb
        rise = integrals(c, qa, 0, math.inf)[1] - integrals(c, qb, 0, math.inf)[1]
        for start, stop in ((qa, qb), (qb, end)):
            step = sphere.linear_step(qa, qb, start, stop)
            digits_agree(step.D, integrals(c, qa, start, stop)[1] / rise)
            digits_agree(step.D_prev, -integrals(c, qb, start, stop)[1] / rise)
            assert step.u == (0.0 if math.isinf(stop) else 1.0)
        # D of slope ε/c at the newest, where ε is u(0), or (u - q D) √(1 + q²/c²)
        flat, tilted = integrals(c, qb, qb, end)
        step = sphere.closing_step(qa, qb, end, Mix(x=0.5, eps=1.0), 0.0)
        digits_agree(step.eps, tilted / Decimal(c))
        digits_agree(step.x, tilted / Decimal(c) / 2)
        digits_agree(step.D, flat)
        assert step.D_prev == 0.0
        flat, tilted = integrals(c, qa, qa, qb)
        rise = tilted / Decimal(c) * (1 + (Decimal(qa) / Decimal(c)) ** 2).sqrt()
        step = sphere.first_step(qa, qb)
        digits_agree(step.u, 1 + rise)
        digits_agree(step.D, flat - rise * Decimal(qa), flat)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(sorted(PATHS)),
    t=st.floats(0.0, 0.999),
    gap=st.floats(1e-3, 1.0),
    rho=rho_numbers,
    steps=st.integers(1, 12),
    solver=st.sampled_from(["default", "first-order", "paper"]),
)
def test_single_transitions_are_finite_and_verified(name, t, gap, rho, steps, solver):
    path = PATHS[name]
    t_next = min(1.0, t + gap)
    if path.trained_times is not None and solver != "paper":
        t = min(path.trained_times, key=lambda s: abs(s - t))
        assume(t < t_next - 1e-6)
    assume(t_next > t)
    table = plan_transition(path, t, t_next, rho=rho, steps=steps, solver=solver)
    (transition,) = table
    assert transition.t_next == t_next
    for mix in mixes(transition):
        assert all(math.isfinite(v) for v in dataclasses.astuple(mix))
    if name in ("linear", "cosine", "vp") and solver != "default":
        assert transition.law == 0.0  # nothing to declare but exactness for a point mass


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(PATHS)),
    transitions=st.integers(1, 5),
    steps=st.integers(1, 12),
    noise_level=st.floats(0.0, 2.0),
    start=st.sampled_from(["trained", "pure"]),
)
def test_every_euler_maruyama_plan_is_finite(name, transitions, steps, noise_level, start):
    assume(start == "trained" or PATHS[name].alpha(0.0) == 0)  # refused, see below
    table = plan(
        PATHS[name],
        transitions=transitions,
        steps=steps,
        rho=None,
        solver=EulerMaruyama(noise_level),
        start=start,
    )
    assert len(table) == table.evaluations == transitions * steps
    for transition in table:
        assert all(math.isfinite(v) for mix in mixes(transition) for v in dataclasses.astuple(mix))
        assert transition.law is None
    assert Table.from_json(table.to_json()).transitions == table.transitions


@pytest.mark.parametrize("solver", ["paper", "euler-maruyama"])
@pytest.mark.parametrize("name", ["vp", "edm", "discrete"])
def test_solvers_that_know_no_pure_start_say_so(solver, name):
    rho = None if solver == "euler-maruyama" else 0.4
    with pytest.raises(PlanError, match=r"start='pure' on the .* starts with start='trained'"):
        plan(PATHS[name], transitions=1, steps=2, rho=rho, solver=solver, start="pure")


@pytest.mark.parametrize("rho", [7.0, "dppm", None, "x"])
def test_a_rule_is_checked_where_it_does_not_matter(rho):
    """From pure noise ρ has no effect: a wrong one is refused all the same."""
    with pytest.raises(InvalidArgument, match="rho"):
        plan(Linear(), transitions=1, steps=2, rho=rho)


def test_the_ode_has_no_correlation():
    ends = Ends.of(Linear(), 0.3, 0.6)
    with pytest.raises(InvalidArgument, match="which has no correlation"):
        resolve_rho("ode", ends)


def test_euler_maruyama_steps_start_at_trained_times():
    path = PATHS["discrete"]
    table = plan(path, transitions=2, steps=3, rho=None, solver="euler-maruyama")
    assert all(row.time in path.trained_times for transition in table for row in transition.rows)
    with pytest.raises(PlanError, match="trained timesteps"):
        plan(path, transitions=len(path.trained_times), steps=2, rho=None, solver="euler-maruyama")


# ------------------------------------------------------------------------ tables check themselves


def tampered(table, k, change):
    transitions = list(table.transitions)
    transitions[k] = change(transitions[k])
    return Table(table.path, tuple(transitions), table.settings, table.start)


def shifted(mix, name, relative):
    return dataclasses.replace(mix, **{name: getattr(mix, name) * (1 + relative)})


@pytest.mark.parametrize("solver", ["default", "first-order", "paper"], ids=str)
@pytest.mark.parametrize("name", ["linear", "edm", "discrete"])
# A coefficient that no result depends on (an inner state that is updated and never read again, as
# at σ̄ = 0, where x' is read off D) could not be caught: tables must hold none.
@pytest.mark.parametrize("rho", [-0.5, 0.4, 1.0])
def test_verify_catches_every_changed_coefficient(solver, name, rho):
    path, t, t_next = middle(name)
    table = plan_transition(path, t, t_next, rho=rho, steps=3, solver=solver)
    (transition,) = table
    assert transition.law is not None
    tried = 0
    for relative in (1e-3, -1e-3):
        places = [("input", None, register) for register, _ in transition.input.terms()]
        for i, row in enumerate(transition.rows):
            for kind in ("update", "emit"):
                if getattr(row, kind) is not None:
                    terms = getattr(row, kind).terms()
                    places += [(kind, i, register) for register, _ in terms]
        for kind, i, register in places:
            if i is None:
                wrong = dataclasses.replace(
                    transition, input=shifted(transition.input, register, relative)
                )
            else:
                rows = list(transition.rows)
                mix = shifted(getattr(rows[i], kind), register, relative)
                rows[i] = dataclasses.replace(rows[i], **{kind: mix})
                wrong = dataclasses.replace(transition, rows=tuple(rows))
            with pytest.raises(PlanError, match="claims to be exact"):
                tampered(table, 0, lambda _, wrong=wrong: wrong)
            tried += 1
    assert tried >= 20


def test_verify_catches_flipped_times_correlations_and_ends():
    table = plan_transition(Linear(), 0.3, 0.7, rho=0.4, steps=3)
    (transition,) = table
    transition.verify(Linear())
    rows = list(transition.rows)
    rows[1] = dataclasses.replace(rows[1], time=rows[1].time + 1e-4)
    wrongs = [
        dataclasses.replace(transition, rows=tuple(rows)),
        dataclasses.replace(transition, rho=0.4001),
        dataclasses.replace(transition, alpha_next=0.7001),
        dataclasses.replace(transition, sigma_next=0.2999),
        dataclasses.replace(transition, alpha=0.3001),
        dataclasses.replace(transition, sigma=0.7001),
        dataclasses.replace(transition, law=0.99),
        dataclasses.replace(transition, law=0.0),
    ]
    for wrong in wrongs:
        with pytest.raises(PlanError, match=r"claims to be exact|the path and rho give"):
            wrong.verify(Linear())
    with pytest.raises(PlanError, match="the path and rho give"):
        transition.verify(VariancePreserving())
    kernel_or_end = {"t_next": 5.0, "t": 0.8, "gamma": 9.0, "alpha_bar": 0.1, "sigma_bar": 0.1}
    for lawless in (transition, dataclasses.replace(transition, law=None)):
        for field, value in {**kernel_or_end, "alpha": 0.31, "sigma_next": 0.31}.items():
            with pytest.raises(PlanError):
                dataclasses.replace(lawless, **{field: value}).verify(Linear())


def test_verify_is_tight_and_not_tighter():
    """A relative error of 1e-7 is caught; one of 1e-10, rounding on a long table, is not."""
    (transition,) = plan_transition(Linear(), 0.3, 0.7, rho=0.4, steps=3)

    def wrong(relative):
        rows = list(transition.rows)
        rows[-1] = dataclasses.replace(rows[-1], emit=shifted(rows[-1].emit, "x", relative))
        return dataclasses.replace(transition, rows=tuple(rows))

    wrong(1e-10).verify(Linear())
    with pytest.raises(PlanError, match=r"covariance|mean|variance"):
        wrong(1e-7).verify(Linear())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_verify_refuses_what_is_not_finite(value):
    table = plan_transition(Linear(), 0.3, 0.7, rho=None, steps=1, solver=EulerMaruyama())
    (transition,) = table
    assert transition.law is None
    bad = [
        dataclasses.replace(transition, rows=(dataclasses.replace(row, emit=Mix(x=value)),))
        for row in transition.rows
    ]
    bad.append(dataclasses.replace(transition, input=Mix(eps=value)))
    bad.append(
        dataclasses.replace(transition, rows=(Row(0.3, Mix(D=value), transition.rows[0].emit),))
    )
    for wrong in bad:
        with pytest.raises(PlanError, match="not finite"):
            Table(Linear(), (wrong,), {})


def test_tables_hang_together():
    table = plan(Linear(), transitions=3, steps=2, rho=0.4)
    with pytest.raises(PlanError, match="next starts"):
        Table(Linear(), (table.transitions[0], table.transitions[2]), {})
    with pytest.raises(PlanError, match="at least one"):
        Table(Linear(), (), {})
    with pytest.raises(PlanError, match="at least one row"):
        Table(Linear(), (dataclasses.replace(table.transitions[0], rows=()),), {})
    assert list(table) == list(table.transitions)


def test_json_of_something_else_is_refused():
    good = plan(Linear(), transitions=2, steps=2, rho=0.4).to_json()
    data = json.loads(good)
    assert Table.from_json(good).settings == {
        "rho": 0.4, "solver": "default", **dataclasses.asdict(Default(guidance=1.0))
    }  # fmt: skip
    wrong = [
        "not json",
        "[]",
        "{}",
        json.dumps({**data, "format": "another"}),
        json.dumps({**data, "version": 2}),
        json.dumps({k: v for k, v in data.items() if k != "path"}),
        json.dumps({**data, "transitions": [{"t": 0.0}]}),
        json.dumps({**data, "path": {"name": "linear", "gamma": 3}}),
    ]
    for text in wrong:
        with pytest.raises(InvalidArgument):
            Table.from_json(text)
    data["transitions"][0]["rows"][0]["emit"]["D"] *= 1.01
    with pytest.raises(PlanError):
        Table.from_json(json.dumps(data))


def test_tables_print_what_happens():
    table = plan(PATHS["discrete"], transitions=2, steps=2, rho=[0.4, 1.0])
    text = str(table)
    assert "2 transitions, 4 network evaluations" in text
    assert "(timestep 499)" in text
    assert "-> data" in text
    assert "rho = 0.4" in text
    assert "draws eps" in text
    assert "exact for N(m, 1.0^2 I)" in text
    assert "exact for a point mass" in str(plan(Linear(), transitions=1, steps=1, rho=0))
    assert "no law claimed" in str(plan(Linear(), transitions=1, steps=1, rho=None,
                                        solver="euler-maruyama"))  # fmt: skip
    assert str(Mix()) == "0"
    assert str(Mix(x=1.0, D=-0.5)) == "+1 x -0.5 D"


def test_which_transitions_draw_noise():
    table = plan(Linear(), transitions=2, steps=2, rho=0.4)
    assert [tr.stochastic for tr in table] == [False, True]  # x_0 is its own noise
    ode = plan(Linear(), transitions=2, steps=2, rho="ode")
    assert not any(tr.stochastic for tr in ode)
    assert [tr.rho for tr in ode] == [None, None]
    # With one evaluation and σ̄ = 0 this is deterministic DDIM, and D_t(x_t) itself at data: a
    # table that says "draws eps" there makes steering believe that copies of a particle part.
    for t_next, rho in ((0.7, 1.0), (0.7, -1.0), (0.7, DDIM(0.0)), (1.0, 0.4)):
        for solver in ("default", "first-order"):
            one = plan_transition(Linear(), 0.3, t_next, rho=rho, steps=1, solver=solver)
            assert not one.transitions[0].stochastic
    more = plan_transition(Linear(), 0.3, 0.7, rho=1.0, steps=2)  # z is drawn from its posterior
    assert more.transitions[0].stochastic
    assert plan_transition(Linear(), 0.3, 1.0, rho=1.0, steps=2).transitions[0].stochastic


# ------------------------------------------------------------------------------ invalid requests


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"steps": 0}, InvalidArgument),
        ({"steps": True}, InvalidArgument),
        ({"steps": [1, 0]}, InvalidArgument),
        ({"steps": [1, 2, 3]}, InvalidArgument),
        ({"steps": [1, 1.5]}, InvalidArgument),
        ({"transitions": 0}, InvalidArgument),
        ({"rho": 1.5}, InvalidArgument),
        ({"rho": None}, InvalidArgument),
        ({"rho": [0.1]}, InvalidArgument),
        ({"solver": "heun"}, UnknownName),
        ({"solver": 3}, InvalidArgument),
        ({"start": "noise"}, UnknownName),
        ({"times": [0.0, 1.0]}, TimeError),
        ({"rho": "ode", "solver": "paper"}, InvalidArgument),
        ({"rho": 0.4, "solver": "euler-maruyama"}, InvalidArgument),
    ],
    ids=str,
)
def test_invalid_plans(change, error):
    good = {"transitions": 2, "steps": 2, "rho": 0.4}
    plan(Linear(), **good)
    with pytest.raises(error):
        plan(Linear(), **{**good, **change})


@pytest.mark.parametrize(
    "make",
    [
        lambda: Default(sigma_data=0.0),
        lambda: Default(sigma_data=math.inf),
        lambda: FirstOrder(sigma_data=-1.0),
        lambda: Paper(sigma0=0.0),
        lambda: Paper(sigma0=math.inf),
        lambda: Paper(s_range=(0.5, 0.5)),
        lambda: Paper(s_range=(-0.1, 0.5)),
        lambda: Paper(s_range=(0.1, 1.1)),
        lambda: Paper(schedule="sine"),
        lambda: Paper(off_grid="drop"),
        lambda: EulerMaruyama(-0.1),
        lambda: EulerMaruyama(math.inf),
        lambda: EulerMaruyama(math.nan),
    ],
)
def test_invalid_solvers(make):
    with pytest.raises(InvalidArgument):
        make()


def test_a_solver_is_a_dataclass_with_transitions():
    registry = Registry("solvers", {}, SOLVERS.check)
    assert registry.register("own", FirstOrder) is FirstOrder
    for thing in (FirstOrder(), type("Plain", (), {"transitions": None}), Ends):
        with pytest.raises(InvalidArgument, match="the solver 'wrong' must be"):
            registry.register("wrong", thing)


def test_single_transitions_go_towards_data():
    for t, t_next in ((0.5, 0.5), (0.6, 0.5), (-0.1, 0.5), (0.5, 1.1)):
        with pytest.raises(TimeError):
            plan_transition(Linear(), t, t_next, rho=0.4, steps=2)


@pytest.mark.parametrize("solver", ["default", "first-order"])
def test_starts_between_trained_times_are_refused(solver):
    path = DiscreteDiffusion([0.9, 0.6, 0.3, 0.1])
    with pytest.raises(PlanError, match=r"0\.25 and 0\.5"):
        plan_transition(path, 0.3, 1.0, rho=0.4, steps=2, solver=solver)
    plan_transition(path, 0.3, 1.0, rho=0.4, steps=2, solver="paper")


# ------------------------------------------------------------ laws for which the tables are exact


CENTRE = np.array([0.7, -1.1, 0.2])


def gaussian_denoiser(path, spread):
    """E[z | x] for z ~ N(m, spread² I), from the two precisions."""

    def denoise(x, t):
        alpha, sigma = path.alpha(t), path.sigma(t)
        if spread == 0.0:
            return np.broadcast_to(CENTRE, x.shape)
        total = alpha**2 * spread**2 + sigma**2
        return CENTRE + alpha * spread**2 / total * (x - alpha * CENTRE)

    return Exact(path, denoise)


def gaussian_transition(path, t, t_next, rho, spread, x, eps):
    """The transition's exact map for z ~ N(m, spread² I).

    Given x, z ~ N(μ, v) with 1/v = 1/spread² + α²/σ²; along the inner flow the state q z + ε has
    law N(q μ, 1 + q² v), and the ODE keeps every path at the same number of deviations from its
    mean, so that x' = γ x + ᾱ μ + √(σ̄² + ᾱ² v) ε.
    """
    alpha, sigma, alpha_next, sigma_next = ends_of(path, t, t_next)
    gamma = rho * sigma_next / sigma
    signal, noise = alpha_next - gamma * alpha, sigma_next**2 * (1 - rho**2)
    if spread == 0.0:
        mean, variance = CENTRE, 0.0
    else:
        variance = 1 / (1 / spread**2 + (alpha / sigma) ** 2)
        mean = variance * (CENTRE / spread**2 + alpha / sigma**2 * x)
    return gamma * x + signal * mean + math.sqrt(noise + signal**2 * variance) * eps


@pytest.mark.parametrize(
    ("name", "rho", "spread"), one_in(4, covering(PATHS, RHOS, [0.3, 1.0, 2.0])), ids=str
)
def test_default_is_exact_for_gaussian_data(name, rho, spread):
    path, x, eps = PATHS[name], 1.5 * normal(4, 3), normal(4, 3, seed=1)
    t = time_of(path, 0.5)
    for t_next in (time_of(path, 2.5), 1.0):
        expected = gaussian_transition(
            path, t, t_next, number(rho, path, t, t_next), spread, x, eps
        )
        for steps in (2, 3, 7):
            table = plan_transition(
                path, t, t_next, rho=rho, steps=steps, solver=Default(sigma_data=spread)
            )
            (transition,) = table
            assert transition.law == spread
            assert len(transition.rows) == steps
            got = execute(table, gaussian_denoiser(path, spread), x, eps)
            np.testing.assert_allclose(got, expected, rtol=0, atol=2e-9)


@pytest.mark.parametrize(
    ("name", "rho", "solver"), one_in(4, covering(PATHS, RHOS, ["first-order", "paper"])), ids=str
)
def test_point_masses_are_exact(name, solver, rho):
    path, x, eps = PATHS[name], 1.5 * normal(4, 3), normal(4, 3, seed=1)
    t = time_of(path, 0.5)
    for t_next in (time_of(path, 2.5), 1.0):
        expected = gaussian_transition(path, t, t_next, number(rho, path, t, t_next), 0.0, x, eps)
        for steps in (1, 2, 5):
            table = plan_transition(path, t, t_next, rho=rho, steps=steps, solver=solver)
            assert table.transitions[0].law == 0.0
            got = execute(table, gaussian_denoiser(path, 0.0), x, eps)
            np.testing.assert_allclose(got, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("t_next", [None, 1.0])
def test_ode_is_exact_for_gaussian_data(name, t_next):
    """The probability-flow ODE keeps x at the same number of deviations from its mean."""
    path, spread, x = PATHS[name], 0.6, normal(4, 3)
    t = time_of(path, 0.5)
    t_next = t_next or time_of(path, 2.5)
    alpha, sigma, alpha_next, sigma_next = ends_of(path, t, t_next)
    before, after = (
        math.hypot(a * spread, s) for a, s in ((alpha, sigma), (alpha_next, sigma_next))
    )
    expected = alpha_next * CENTRE + after / before * (x - alpha * CENTRE)
    for steps in (2, 5):
        table = plan_transition(
            path, t, t_next, rho="ode", steps=steps, solver=Default(sigma_data=spread)
        )
        assert table.transitions[0].law == spread
        got = execute(table, gaussian_denoiser(path, spread), x)
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-9)


def test_one_evaluation_claims_a_point_mass_only():
    for rho in (0.4, 1.0, "ode"):
        (transition,) = plan_transition(Linear(), 0.3, 0.7, rho=rho, steps=1)
        assert transition.law == 0.0


def test_edm_ends_inside_the_grid():
    """Beyond σ_min the network knows nothing: no law is claimed where a query would be moved."""
    path = EDM(0.1, 10.0)
    (paper,) = plan_transition(path, 0.5, 1.0, rho=0.4, steps=100, solver="paper")
    assert paper.law is None
    assert max(row.time for row in paper.rows) == 1.0
    (ours,) = plan_transition(path, 0.5, 1.0, rho=0.4, steps=60)
    assert ours.law == 1.0
    assert all(row.time <= 1.0 for row in ours.rows)


@pytest.mark.parametrize("law", ["full", "cut"])
def test_what_the_paper_solver_claims(law):
    inner = {"full": {}, "cut": {"s_range": (0.001, 0.999)}}[law]
    (transition,) = plan_transition(Linear(), 0.3, 0.7, rho=0.4, steps=3, solver=Paper(**inner))
    assert transition.law == (0.0 if law == "full" else None)
    for other in ({"schedule": "cosine"}, {"s_range": (0.0, 0.999)}, {"s_range": (0.001, 1.0)}):
        (transition,) = plan_transition(Linear(), 0.3, 0.7, rho=0.4, steps=3, solver=Paper(**other))
        assert transition.law is None
    (snapped,) = plan_transition(
        PATHS["discrete"], 0.3, 0.7, rho=0.4, steps=3, solver=Paper(off_grid="nearest")
    )
    assert snapped.law is None


# ------------------------------------------------------------------------------- trained timesteps


@pytest.mark.parametrize("name", ["discrete", "zero-snr"])
@pytest.mark.parametrize("solver", ["default", "first-order"])
@pytest.mark.parametrize("rho", one_in(2, [-0.5, 0.0, 0.4, 1.0, "ddpm", "ode"]))
def test_every_query_is_a_trained_time(name, solver, rho):
    path = PATHS[name]
    for transitions, steps in ((1, 12), (5, 6), (20, 2)):
        table = plan(path, transitions=transitions, steps=steps, rho=rho, solver=solver)
        assert table.evaluations == transitions * steps
        for transition in table:
            asked = [row.time for row in transition.rows]
            assert on_trained_times(path, asked)
            assert all(s < t for s, t in itertools.pairwise(asked))
            assert transition.law == (1.0 if solver == "default" else 0.0)


@pytest.mark.parametrize("rho", [0.0, 0.4, 1.0, "ddpm"])
@pytest.mark.parametrize("solver", ["default", "first-order"])
def test_few_timesteps_in_reach_are_all_used(rho, solver):
    """Every trained timestep strictly between the start and what the end knows, and no other."""
    path = DiscreteDiffusion([0.99, 0.9, 0.75, 0.5, 0.3, 0.12, 0.02])
    t, t_next = path.trained_times[1], path.trained_times[4]
    (transition,) = plan_transition(path, t, t_next, rho=rho, steps=9, solver=solver)
    resolved = number(rho, path, t, t_next)
    a, _, _, signal, noise = inner_problem(path, t, t_next, resolved)
    end = math.hypot(a, signal / noise) if noise > 0 else math.inf
    expected = [s for s in path.trained_times if a <= path.amplitude(s) * (1 + 1e-12) < end]
    assert [row.time for row in transition.rows] == pytest.approx(expected, abs=1e-12)
    assert f"only {len(expected)} trained timesteps" in transition.note
    # the end of the transition is exact in law all the same
    spread = 1.0 if solver == "default" and len(expected) > 1 else 0.0
    assert transition.law == spread
    x, eps = normal(4, 3), normal(4, 3, seed=1)
    table = Table(path, (transition,), {})
    got = execute(table, gaussian_denoiser(path, spread), x, eps)
    exact = gaussian_transition(path, t, t_next, resolved, spread, x, eps)
    np.testing.assert_allclose(got, exact, rtol=0, atol=1e-10)


def test_enough_timesteps_leave_no_note():
    table = plan_transition(PATHS["discrete"], 0.0, 1.0, rho=0.4, steps=6)
    assert table.transitions[0].note == ""
    assert "from pure noise" in plan(Linear(), transitions=1, steps=2, rho=0.4).transitions[0].note


# ----------------------------------------------------------------------------------------- starts


@pytest.mark.parametrize("name", ["vp", "edm", "discrete"])
@pytest.mark.parametrize("solver", ["default", "first-order"])
def test_pure_starts_carry_no_information(name, solver):
    """x_0 is the noise: the network is asked about x itself, nothing is drawn, ρ is ignored."""
    path, x = PATHS[name], 1.7 * normal(5, 2)
    results = []
    for rho in (-0.5, 0.4, 1.0, "ddpm"):
        table = plan(
            path, transitions=2, steps=3, rho=[rho, 0.4], start="pure", times=[0.0, 0.5, 1.0],
            solver=solver,
        )  # fmt: skip
        first = table.transitions[0]
        assert not first.stochastic
        assert (first.alpha, first.gamma) == (0.0, 0.0)
        assert (first.alpha_bar, first.sigma_bar) == (path.alpha(0.5), path.sigma(0.5))
        assert table.start_scale == path.sigma(0.0)
        assert table.start == "pure"
        denoiser = Exact(path)
        results.append(execute(table, denoiser, x, x, normal(5, 2, seed=1)))
        assert denoiser.times[0] == 0.0
        assert np.array_equal(denoiser.inputs[0], x)
    for other in results[1:]:
        assert np.array_equal(results[0], other)


@pytest.mark.parametrize("name", ["vp", "edm", "discrete"])
def test_one_pure_step_is_the_prior_transition(name):
    """With M = 1 and ε = x/σ_0: x' = α' D_0(x) + σ' x/σ_0."""
    path, x = PATHS[name], 1.7 * normal(5, 2)
    table = plan(path, transitions=1, steps=1, rho=0.4, start="pure", times=[0.0, 0.5])
    D = Mixture().denoise(x, path.alpha(0.0), path.sigma(0.0))
    expected = path.alpha(0.5) * D + path.sigma(0.5) / path.sigma(0.0) * x
    np.testing.assert_allclose(execute(table, Exact(path), x), expected, rtol=1e-12)


@pytest.mark.parametrize("name", ["vp", "edm", "discrete"])
def test_trained_starts_are_states_at_the_first_trained_time(name):
    path = PATHS[name]
    pair = plan(path, transitions=1, steps=3, rho=0.4, times=[0.0, 0.5])
    assert pair.transitions[0].stochastic
    assert pair.transitions[0].alpha == path.alpha(0.0)
    power = path.alpha(0.0) ** 2 + path.sigma(0.0) ** 2
    assert pair.start_scale == pytest.approx(math.sqrt(power), rel=1e-14)
    assert pair.start == "trained"
    alone = plan_transition(path, 0.0, 0.5, rho=0.4, steps=3)
    assert alone.transitions == pair.transitions


@pytest.mark.parametrize("name", ["linear", "cosine", "zero-snr"])
def test_both_starts_agree_where_the_path_starts_at_noise(name):
    options = {"transitions": 3, "steps": 3, "rho": 0.4}
    trained, pure = (plan(PATHS[name], start=s, **options) for s in ("trained", "pure"))
    assert trained.transitions == pure.transitions
    assert trained.start_scale == 1.0


def test_pure_changes_the_first_transition_only():
    options = {"transitions": 3, "steps": 3, "rho": 0.4}
    trained, pure = (plan(PATHS["vp"], start=s, **options) for s in ("trained", "pure"))
    assert trained.transitions[1:] == pure.transitions[1:]
    assert trained.transitions[0] != pure.transitions[0]


# -------------------------------------------------------------------------- orders of convergence


def results(solver, path, t, t_next, rho, counts, n=200):
    """x' (n, 2) from the same states and noise, for each number of evaluations."""
    x = path.alpha(t) * Mixture().sample(n, np.random.default_rng(3)) + path.sigma(t) * normal(n, 2)
    eps = normal(n, 2, seed=1)
    for steps in counts:
        table = plan_transition(path, t, t_next, rho=rho, steps=steps, solver=solver)
        yield execute(table, Exact(path), x, eps)


def extrapolated(coarse, fine, order):
    """Richardson's: the limit, from M and 2 M evaluations of a method whose order is known."""
    return fine + (fine - coarse) / (2**order - 1)


def slope(error, half):
    """The order seen between two errors (RMS), the second of twice as many evaluations."""
    return 0.5 * math.log2(np.mean(error**2) / np.mean(half**2))


TRANSITIONS = [
    ("linear", 0.3, 0.7, 0.4),
    ("linear", 0.0, 1.0, 0.4),
    ("linear", 0.3, 1.0, 0.4),
    ("cosine", 0.4, 1.0, -0.5),
    ("vp", 0.6, 0.9, 1.0),
    ("linear", 0.2, 0.8, "ode"),
]


@pytest.mark.parametrize(("name", "t", "t_next", "rho"), fast(TRANSITIONS[4:5], TRANSITIONS))
def test_orders_of_convergence(name, t, t_next, rho):
    """Of the default solver by itself; of those of first order by their distance from its limit."""
    problem = (PATHS[name], t, t_next, rho)
    coarse, middling, fine = results("default", *problem, (40, 80, 160))
    assert slope(coarse - middling, middling - fine) >= 1.7
    limit = extrapolated(middling, fine, 2)
    others = ["first-order"] if rho == "ode" or t == 0 else ["first-order", "paper"]
    for solver in others:
        errors = (x - limit for x in results(solver, *problem, (64, 128)))
        assert 0.8 <= slope(*errors) <= 1.2


@pytest.mark.slow
@pytest.mark.parametrize(("name", "t", "t_next", "rho"), TRANSITIONS)
def test_orders_of_convergence_far_out(name, t, t_next, rho):
    """At 40 evaluations terms of higher order still help; here the order itself is seen."""
    coarse, middling, fine = results("default", PATHS[name], t, t_next, rho, (160, 320, 640))
    assert 1.85 <= slope(coarse - middling, middling - fine) <= 2.2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "rho"), [("linear", 0.4), pytest.param("vp", 1.0, marks=pytest.mark.slow)]
)
def test_all_solvers_reach_the_same_transition(name, rho):
    """The limit is one function of (x, ε), whatever the grid, σ_data, σ̄_0 or schedule."""

    def limit(solver, steps, order):
        runs = results(solver, *middle(name), rho, (steps, 2 * steps), n=10)
        return extrapolated(*runs, order)

    expected = limit(Default(sigma_data=0.5), 80, 2)
    for solver, steps, order, tolerance in (
        (Default(), 40, 2, 5e-4),
        (FirstOrder(), 100, 1, 3e-3),
        (Paper(), 100, 1, 3e-3),
        (Paper(sigma0=0.5), 100, 1, 3e-3),
        (Paper(schedule="cosine"), 100, 1, 3e-3),
    ):
        np.testing.assert_allclose(limit(solver, steps, order), expected, rtol=0, atol=tolerance)
