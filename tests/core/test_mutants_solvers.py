"""Edges of the solvers that mutation testing (tools/mutants.py) found unwatched."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from glass_flows.paths import EDM, DiscreteDiffusion, Linear
from glass_flows.plans import (
    Default,
    Ends,
    FirstOrder,
    InnerFlow,
    Paper,
    SecondOrder,
    plan_transition,
)
from glass_flows.plans.solvers import _nearest_distinct


def test_no_law_is_claimed_beyond_the_end_of_a_path():
    """EDM(0.5, 8) ends at amplitude 2; the paper's last query, at q = 3, knows more than that."""
    path = EDM(0.5, 8.0)
    t = 0.9
    (inside,) = plan_transition(path, t, 1.0, rho=0.4, steps=2, solver=Paper())
    assert math.hypot(1 / path.sigma(t), 1.0) < 2  # s = 1/2 has q = s/(1 - s) = 1
    assert inside.law == 0.0
    (beyond,) = plan_transition(path, t, 1.0, rho=0.4, steps=4, solver=Paper())
    assert 2 < math.hypot(1 / path.sigma(t), 3.0) < 4  # s = 3/4
    assert beyond.law is None
    assert beyond.rows[-1].time == 1.0


def test_queries_between_trained_times_move_only_when_asked():
    path = DiscreteDiffusion([0.75, 0.5, 0.25, 0.1])
    flow = InnerFlow.of(path, Ends.of(path, 0.25, 0.75), 0.4, pure=False)
    amplitude = path.amplitude(0.6)  # between 1/2 and 3/4
    q = math.sqrt(amplitude**2 - flow.known**2)
    assert flow.query(q)[0] == pytest.approx(0.6, rel=1e-12)
    assert flow.query(q, nearest=True)[0] == 0.5


@pytest.mark.parametrize("steps", [2, 3, 5, 8])
@pytest.mark.parametrize("t_next", [0.6, 1.0])
def test_queries_land_on_the_trained_time_nearest_in_angle(steps, t_next):
    """First order's grid is uniform in θ = arctan(q/c); with 200 trained times none collide."""
    count = 200
    path = DiscreteDiffusion([0.995 * (1 - k / count) ** 2 for k in range(count)])
    ends = Ends.of(path, 0.2, t_next)
    flow = InnerFlow.of(path, ends, 0.4, pure=False)
    c = math.hypot(1.0, flow.known)
    theta = math.atan2(flow.q1, c)
    wanted = [c * math.tan(i / steps * theta) for i in range(1, steps)]
    angles = [math.atan(math.hypot(flow.known, q)) for q in wanted]
    nearest = [
        min(path.trained_times, key=lambda t: abs(math.atan(path.amplitude(t)) - angle))
        for angle in angles
    ]
    (transition,) = plan_transition(path, 0.2, t_next, rho=0.4, steps=steps, solver=FirstOrder())
    assert [row.time for row in transition.rows] == pytest.approx([0.2, *nearest], abs=1e-9)


@pytest.mark.parametrize(("t", "steps"), [(0.0, 7), (0.1, 6), (0.5, 4)])
@pytest.mark.parametrize("power", [1.0, 8.0])
def test_as_many_steps_as_trained_times_take_them_all(t, steps, power):
    """Steps that crowd at one end of the table make room for each other.

    DDPM's inner flow ends at what x_t' knows, so that t' bounds its queries.
    """
    path = DiscreteDiffusion([0.99 * (1 - k / 10) ** power for k in range(10)])
    t_next = 0.7 if t < 0.5 else 0.9
    (transition,) = plan_transition(path, t, t_next, rho="ddpm", steps=steps, solver=FirstOrder())
    between = [s for s in path.trained_times if t <= s < t_next]
    assert len(between) == steps
    assert [row.time for row in transition.rows] == pytest.approx(between, abs=1e-12)
    assert transition.note == ""
    (more,) = plan_transition(path, t, t_next, rho="ddpm", steps=steps + 1, solver=FirstOrder())
    assert [row.time for row in more.rows] == pytest.approx(between, abs=1e-12)
    assert more.note == f"only {steps} trained timesteps in reach"


def test_solvers_are_for_data_of_unit_spread():
    assert FirstOrder() == FirstOrder(sigma_data=1.0)
    assert Default() == Default(sigma_data=1.0)


def way(path, known, solver, steps, warp):
    """Each query's share of the way from the first to the last, in r^(1/warp), r = 1 - 2θ/π."""
    t = path.time(known)
    (transition,) = plan_transition(path, t, 1.0, rho=0.4, steps=steps, solver=solver)
    times = [row.time for row in transition.rows]
    assert len(times) == steps
    c = math.hypot(1.0, known)
    added = [math.sqrt(max(path.amplitude(s) ** 2 - known**2, 0.0)) for s in times]
    roots = [(1 - math.atan(q / c) / (math.pi / 2)) ** (1 / warp) for q in added]
    shares = [(root - roots[0]) / (roots[-1] - roots[0]) for root in roots]
    return shares, times[-1], transition.note


@pytest.mark.parametrize("known", [0.2, 0.6])
@pytest.mark.parametrize(
    ("solver", "steps", "warp"),
    [(FirstOrder(), 2, 1.0), (FirstOrder(), 5, 1.0), (Default(), 3, 1.0), (Default(), 12, 1.3)],
    ids=repr,
)
def test_grids_keep_their_shape_where_a_path_ends_early(known, solver, steps, warp):
    """EDM knows no less noise than σ_min: the grid shrinks until its last query is there."""
    early, last, note = way(EDM(1.2, 8.0), known, solver, steps, warp)
    assert note == "queries end with the path"
    assert last == pytest.approx(1.0, rel=1e-12)
    free, last, note = way(EDM(1e-6, 8.0), known, solver, steps, warp)
    assert note == ""
    assert last < 1.0
    assert early == pytest.approx(free, abs=1e-6)
    if solver == FirstOrder():
        assert early == pytest.approx([i / (steps - 1) for i in range(steps)], abs=1e-6)


@pytest.mark.parametrize("solver", [FirstOrder(), Default()])
def test_one_evaluation_is_the_start_wherever_the_path_ends(solver):
    path = EDM(1.0, 8.0)
    for t in (0.1, 0.9):
        (transition,) = plan_transition(path, t, 1.0, rho=0.4, steps=1, solver=solver)
        assert [row.time for row in transition.rows] == [t]
        assert transition.law == 0.0


@pytest.mark.parametrize("solver", [FirstOrder(), Default()])
@pytest.mark.parametrize("steps", [2, 3])
def test_a_start_at_the_end_of_the_path_leaves_one_evaluation(solver, steps):
    """One float before t = 1 the noise is σ_min itself: nothing can be asked beyond it."""
    path = EDM(1.0, 1.5)
    t = math.nextafter(1.0, 0.0)
    assert path.amplitude(t) == path.amplitude(1.0)
    (transition,) = plan_transition(path, t, 1.0, rho=0.4, steps=steps, solver=solver)
    assert [row.time for row in transition.rows] == [t]
    assert transition.note == "the path ends here: one evaluation"


def test_the_nearest_trained_levels_are_taken_where_they_are_free():
    """Neighbours may both be taken, the very first level too; a taken one gives way upwards."""
    levels = [1.0, 2.0, 3.0, 4.0]
    assert _nearest_distinct(levels, [1.0, 2.0]) == [1.0, 2.0]
    assert _nearest_distinct(levels, [2.1, 2.2]) == [2.0, 3.0]
    assert _nearest_distinct(levels, [3.9, 4.0]) == [3.0, 4.0]


@pytest.mark.parametrize(("t", "t_next"), [(0.0, 0.4), (0.2, 0.6), (0.2, 0.9), (0.3, 1.0)])
@pytest.mark.parametrize("steps", [1, 2, 3, 6])
@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_second_order_supposes_no_slope(t, t_next, steps, guidance):
    """A table that is built has its law verified; with one more word it is the default's."""
    (ours,) = plan_transition(
        Linear(), t, t_next, rho=0.4, steps=steps, solver=SecondOrder(guidance=guidance)
    )
    assert ours.law == 0.0
    (other,) = plan_transition(
        Linear(), t, t_next, rho=0.4, steps=steps, solver=Default(guidance=guidance)
    )
    assert other.law == (0.0 if steps == 1 else 1.0)
    assert [row.time for row in ours.rows] == [row.time for row in other.rows]
    assert ours.input == other.input
    for number, (row, same) in enumerate(zip(ours.rows, other.rows)):
        if 0 < number < steps - 1:  # between the ends both take the line through two evaluations
            assert row.emit == same.emit


def test_second_order_ends_at_what_it_is_told():
    """At data with an old last slope D is kept, so that not a trace of the noise is left."""
    for steps in (1, 2, 3, 5):
        (transition,) = plan_transition(
            Linear(), 0.3, 1.0, rho=0.4, steps=steps, solver=SecondOrder()
        )
        end = transition.rows[-1].emit
        assert (end.x, end.u, end.eps) == (0.0, 0.0, 0.0)
        assert end.D + end.D_prev == pytest.approx(1.0, abs=1e-15)
        assert (end.D_prev != 0.0) == (steps == 2)
    (default,) = plan_transition(Linear(), 0.3, 1.0, rho=0.4, steps=3, solver=Default())
    assert default.rows[-1].emit.eps > 0.05


def test_second_order_is_of_second_order():
    """On two points, between which D turns: the error falls as 1/M², first order's as 1/M."""

    def end(steps, solver):
        (transition,) = plan_transition(Linear(), 0.2, 0.7, rho=0.4, steps=steps, solver=solver)
        registers = {"x": 0.3, "eps": -0.8, "u": 0.0, "D": 0.0, "D_prev": 0.0}
        y = registers["x"]
        for row in transition.rows:
            a, sigma = row.time, 1 - row.time
            D = math.tanh(a * y / sigma**2)
            registers |= {"D_prev": registers["D"], "D": D}
            if row.update is not None:
                registers["u"] = sum(c * registers[r] for r, c in row.update.terms())
            y = sum(c * registers[r] for r, c in row.emit.terms())
        return y

    exact = end(1500, Default())
    for solver, order in ((SecondOrder(), 2), (FirstOrder(), 1)):
        errors = [abs(end(steps, solver) - exact) for steps in (40, 80, 160)]
        rates = [math.log2(a / b) for a, b in pairwise(errors)]
        assert rates == pytest.approx([order] * 2, abs=0.15)
