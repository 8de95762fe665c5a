"""The executor inside out, paths that know certain times only, and starts that are given."""

import pytest
import torch

import glass_flows
from glass_flows import Denoiser, plan, steer
from glass_flows.errors import InvalidArgument, NonFinite, ShapeError, TimeError
from glass_flows.execute import Boundary, Estimate, Query, interpret, iterate, run
from glass_flows.noise import KeyedNoise
from glass_flows.paths import KnownTimes, Linear, from_config

PATH = Linear()


def shrink(x, t):
    return -x * t.view(-1, 1)


DENOISER = Denoiser(shrink, PATH)
TABLE = plan(PATH, transitions=3, steps=2, rho=0.4)
X = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def by_hand(table, x, edit=None, patient=False, denoiser=DENOISER):
    """The samples, and the kinds of what was yielded."""
    steps, kinds = interpret(table, x, KeyedNoise(0), patient), []
    step = next(steps)
    while step is not None:
        kinds.append(type(step))
        if isinstance(step, Boundary):
            last, step = step, next(steps, None)
            continue
        if edit is not None:
            edit(step)
        D = denoiser(step.y, step.time)
        step = steps.send(Estimate(D, D))
    return last.x, kinds


@pytest.mark.parametrize("patient", [False, True])
def test_it_is_the_executor(patient):
    samples, kinds = by_hand(TABLE, X, patient=patient)
    assert torch.equal(samples, run(TABLE, DENOISER, X, KeyedNoise(0)))
    assert kinds == [Query, Boundary, Query] * 3 + [Boundary]


def test_a_state_put_in_at_a_boundary_is_gone_on_from():
    other = X.flip(0).contiguous()

    def edit(query):
        if query.index == 0 and query.row == 0:
            query.y = other

    assert torch.equal(by_hand(TABLE, X, edit)[0], by_hand(TABLE, other)[0])


def test_a_query_wants_an_answer():
    steps = interpret(TABLE, X, KeyedNoise(0))
    next(steps)
    with pytest.raises(InvalidArgument, match="send"):
        next(steps)


def test_the_patient_look_for_nan_at_the_end_and_say_where_it_was():
    def broken(x, t):
        D = shrink(x, t)
        if t[0] == TABLE.times[1]:
            D[2] = torch.nan
        return D

    bad = Denoiser(broken, PATH)
    seen = []
    with pytest.raises(NonFinite, match=r"transition 1, evaluation 0.*particles 2 ") as patient:
        by_hand(TABLE, X, edit=lambda query: seen.append(query.index), patient=True, denoiser=bad)
    assert seen[-1] == 2 and patient.value.particles == (2,)
    seen.clear()
    with pytest.raises(NonFinite):
        by_hand(TABLE, X, edit=lambda query: seen.append(query.index), denoiser=bad)
    assert seen[-1] == 1


def test_the_rest_of_a_table():
    assert TABLE.since(0) is TABLE
    middle = None
    for boundary in iterate(TABLE, DENOISER, X, KeyedNoise(0)):
        if boundary.index == 1:
            middle = boundary.x.clone()
    assert TABLE.since(1).times == TABLE.times[1:]
    noise = KeyedNoise(0)
    again = run(TABLE.since(1), DENOISER, middle, lambda step, like: noise(step + 1, like))
    assert torch.equal(again, run(TABLE, DENOISER, X, KeyedNoise(0)))


# --- known times ---------------------------------------------------------------------------------

TIMES = tuple(i / 64 for i in range(64))


@pytest.mark.parametrize("rho", [0.4, "ode", "ddpm"])
def test_every_query_is_at_a_known_time(rho):
    path = KnownTimes(Linear(), TIMES)
    table = plan(path, transitions=5, steps=3, rho=rho)
    assert {row.time for tr in table for row in tr.rows} <= set(TIMES)
    assert from_config(path.config()) == path
    assert glass_flows.Table.from_json(table.to_json()) == table


def test_known_times_change_nothing_else_of_a_path():
    path = KnownTimes(Linear(), TIMES)
    for t in (0.0, 0.3, 0.71, 1.0):
        for name in ("alpha", "sigma", "alpha_dot", "sigma_dot", "amplitude"):
            assert getattr(path, name)(t) == getattr(PATH, name)(t)
    assert path.time(0.4567) == PATH.time(0.4567)


def test_two_known_times_are_enough():
    assert plan(KnownTimes(PATH, (0.0, 0.5)), transitions=2, steps=1, rho=0.4).times == (0, 0.5, 1)


def test_a_known_time_is_met_exactly_and_no_other():
    known = tuple(i / 61 for i in range(1, 61))
    path = KnownTimes(Linear(), known)
    assert any(Linear().time(path.amplitude(t)) != t for t in known)  # rounding is there
    assert all(path.time(path.amplitude(t)) == t for t in known)
    for t in (known[7] - 1e-12, known[7] + 1e-12, known[0] / 2, 0.999):
        assert path.time(path.amplitude(t)) == pytest.approx(t, abs=1e-15)


@pytest.mark.parametrize(
    ("given", "times"),
    [
        (PATH, (0.5,)),
        (PATH, (0.5, 0.5)),
        (PATH, (0.1, 0.3, 0.2)),
        (PATH, (0.5, 1.0)),
        (PATH, (0.1, 0.2, 1.0)),
        (PATH, (0.5, 1.5)),
        (KnownTimes(PATH, TIMES), TIMES),
        ("linear", TIMES),
    ],
)
def test_wrong_known_times(given, times):
    with pytest.raises(InvalidArgument):
        KnownTimes(given, times)


# --- given starts --------------------------------------------------------------------------------


SETTINGS = {
    "shape": (3,),
    "particles": 4,
    "scale": 1.0,
    "transitions": 2,
    "steps": 2,
    "rho": 0.4,
    "seed": 1,
}


def test_steering_from_given_particles():
    settings = {**SETTINGS, "scale": 2.0}
    drawn = steer(DENOISER, lambda z: z.sum(1), dtype=torch.float64, **settings)
    x = KeyedNoise(1)(0, torch.empty(4, 3, dtype=torch.float64), purpose=0)
    given = steer(DENOISER, lambda z: z.sum(1), x=x, **settings)
    assert torch.equal(drawn.samples, given.samples)
    late = steer(DENOISER, lambda z: z.sum(1), x=x, times=[0.2, 0.5, 1.0], **settings)
    assert not torch.equal(late.samples, given.samples)
    with pytest.raises(ShapeError, match="one for each particle"):
        steer(DENOISER, lambda z: z.sum(1), x=x[:3], **settings)
    with pytest.raises(TimeError, match="ends at data"):
        steer(DENOISER, lambda z: z.sum(1), x=x, times=[0.2, 0.5, 0.9], **settings)
    with pytest.raises(TimeError):
        steer(DENOISER, lambda z: z.sum(1), times=[0.2, 0.5, 1.0], **settings)


def test_passes_are_counted():
    twice = Denoiser(shrink, PATH, passes=2)
    assert twice.evaluations_per_call == 2
    assert steer(twice, lambda z: z.sum(1), **SETTINGS).network_evaluations == 4 * 2 * 2 * 2
    with pytest.raises(InvalidArgument, match="passes"):
        Denoiser(shrink, PATH, passes=0)


def test_a_pure_start_is_read_so_at_any_first_time():
    """alpha = 0 is planned, so that the first transition is deterministic given x."""
    pure = plan(PATH, transitions=2, steps=2, rho=0.4, times=[0.1, 0.5, 1.0], start="pure")
    trained = plan(PATH, transitions=2, steps=2, rho=0.4, times=[0.1, 0.5, 1.0])
    assert pure.transitions[0].alpha == 0.0 and not pure.transitions[0].stochastic
    assert trained.transitions[0].alpha == 0.1 and trained.transitions[0].stochastic
    assert pure.transitions[1] == trained.transitions[1]
