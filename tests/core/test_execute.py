"""The executor, the noise sources and the one-call samplers."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

import glass_flows
from glass_flows import Denoiser, Guidance, GuidedDenoiser, plan, posterior, sample, transition
from glass_flows.denoisers import Costs
from glass_flows.errors import (
    InvalidArgument,
    NonFinite,
    PlanError,
    ShapeError,
    TimeError,
    UnknownName,
)
from glass_flows.execute import iterate, run
from glass_flows.noise import (
    POSTERIOR,
    START,
    TRANSITION,
    FixedNoise,
    GeneratorNoise,
    KeyedNoise,
    StreamNoise,
)
from glass_flows.paths import EDM, Cosine, Linear, VariancePreserving
from glass_flows.plans import Mix, Paper, Row, Table, plan_transition
from glass_flows.sampling import Tally
from glass_flows.worlds import GaussianMixture

MIXTURE = GaussianMixture(
    torch.randn(4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64), 0.4
)
LINEAR = MIXTURE.denoiser(Linear())
TABLE = plan(Linear(), transitions=3, steps=3, rho=0.4)


def start(batch=6, dtype=torch.float64):
    return torch.randn(batch, 3, generator=torch.Generator().manual_seed(5), dtype=dtype)


# --- iterating --------------------------------------------------------------------------------


def test_a_run_is_an_exhausted_iteration():
    noise = KeyedNoise(3)
    boundaries = list(iterate(TABLE, LINEAR, start(), noise))
    assert [b.index for b in boundaries] == [0, 1, 2, 3]
    assert [b.final for b in boundaries] == [False, False, False, True]
    assert [b.t for b in boundaries] == list(TABLE.times)
    assert torch.equal(boundaries[-1].x, run(TABLE, LINEAR, start(), noise))
    for boundary in boundaries[:-1]:  # the free value
        assert torch.equal(boundary.D, LINEAR(boundary.x, boundary.t))
    assert torch.equal(boundaries[-1].D, boundaries[-1].x)


def test_the_table_costs_what_it_says():
    calls = []

    class Counting:
        path, evaluations_per_call = Linear(), 1

        def __call__(self, x, t):
            calls.append(t)
            return LINEAR(x, t)

    run(TABLE, Counting(), start(), KeyedNoise(0))
    assert calls == [row.time for tr in TABLE for row in tr.rows]
    assert len(calls) == TABLE.evaluations == 9


def test_copies_of_a_particle_part_after_a_selection():
    everyone_is = torch.full((6,), 2)
    for boundary in iterate(TABLE, LINEAR, start(), KeyedNoise(0)):
        if boundary.index == 1:
            before = boundary.x[2].clone()
            boundary.select(everyone_is)
            assert torch.equal(boundary.x, before.expand(6, 3))
        if boundary.index == 2:
            assert len(torch.unique(boundary.x, dim=0)) == 6


def test_copies_stay_copies_where_no_noise_is_drawn():
    for boundary in iterate(TABLE, LINEAR, start(), KeyedNoise(0)):
        if boundary.index == 0:
            assert not boundary.transition.stochastic
            boundary.select(torch.zeros(6, dtype=torch.long))
        if boundary.index == 1:
            assert torch.equal(boundary.x, boundary.x[:1].expand(6, 3))


def test_a_selection_moves_the_state_and_its_denoised_image_together():
    order = torch.tensor([5, 4, 3, 2, 1, 0])
    fixed = FixedNoise([start(), start() + 1, start() - 1])
    plain = run(TABLE, LINEAR, start(), FixedNoise([n[order] for n in fixed.noises]))
    for boundary in iterate(TABLE, LINEAR, start()[order], fixed):
        if boundary.index == 0:
            boundary.select(order)
    torch.testing.assert_close(boundary.x, run(TABLE, LINEAR, start(), fixed))
    assert not torch.equal(boundary.x, plain)


def test_a_shift_moves_the_mean_of_the_noise():
    delta = torch.randn(6, 3, dtype=torch.float64)
    noise = [start(), torch.randn(6, 3, dtype=torch.float64), start()]
    for boundary in iterate(TABLE, LINEAR, start(), FixedNoise(noise)):
        if boundary.index == 1:
            boundary.shift(delta)
    by_hand = FixedNoise([noise[0], noise[1] + delta, noise[2]])
    torch.testing.assert_close(boundary.x, run(TABLE, LINEAR, start(), by_hand))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_shifted_boundary_keeps_the_noise_that_was_drawn(dtype):
    """ε = noise + δ, of which `noise` is what the source gave: the density ratio needs it."""
    delta = torch.randn(6, 3, dtype=torch.float64)
    for boundary in iterate(TABLE, LINEAR, start(dtype=dtype), KeyedNoise(4)):
        if boundary.index == 1:
            shifted = boundary
            boundary.shift(delta)
            assert boundary.noise is None  # not drawn yet
        elif boundary.index == 2:
            drawn = KeyedNoise(4)(1, start(dtype=dtype))
            assert torch.equal(shifted.noise, drawn)
            assert shifted.delta.dtype == dtype
            assert boundary.noise is None
    # by hand: the transition's own numbers with ε = noise + δ
    noises = [start(dtype=dtype), drawn + delta.to(dtype), KeyedNoise(4)(2, start(dtype=dtype))]
    assert torch.equal(boundary.x, run(TABLE, LINEAR, start(dtype=dtype), FixedNoise(noises)))


def test_a_boundary_without_a_shift_keeps_no_noise():
    boundaries = list(iterate(TABLE, LINEAR, start(), KeyedNoise(4)))
    assert all(b.noise is None and b.delta is None for b in boundaries)


def test_only_transitions_that_draw_noise_are_stochastic():
    boundaries = list(iterate(TABLE, LINEAR, start(), KeyedNoise(4)))
    assert [b.stochastic for b in boundaries] == [False, True, True, False]
    ode = plan(Linear(), transitions=3, steps=2, rho="ode")
    assert not any(b.stochastic for b in iterate(ode, LINEAR, start(), KeyedNoise(4)))
    with pytest.raises(InvalidArgument, match="boundary 3 draws no noise"):
        boundaries[-1].shift(torch.zeros(6, 3))


def test_a_boundary_holds_the_estimate_as_it_came():
    guided = GuidedDenoiser(LINEAR, lambda z: z[:, 0], Guidance(2.0))
    order = torch.tensor([5, 4, 3, 2, 1, 0])
    for boundary in iterate(TABLE, guided, start(), KeyedNoise(4)):
        if boundary.final:
            assert boundary.estimate.D is boundary.estimate.untilted is boundary.x
            break
        x, answer = boundary.x, boundary.estimate
        assert torch.equal(answer.D, guided(x, boundary.t))
        assert torch.equal(answer.untilted, LINEAR(x, boundary.t))
        assert torch.equal(answer.rewards, answer.untilted[:, 0])
        assert answer.gradient[:, 0].tolist() == [1.0] * 6
        assert torch.equal(boundary.D, answer.D)
        boundary.select(order)
        assert torch.equal(boundary.D, answer.D[order])
        assert boundary.estimate is answer
    plain = next(iterate(TABLE, LINEAR, start(), KeyedNoise(4)))
    assert plain.estimate.untilted is plain.estimate.D is plain.D


@pytest.mark.parametrize("through", ["reward", "network"])
def test_a_tally_counts_what_guidance_asks_for_each_particle(through):
    calls = []
    guided = GuidedDenoiser(
        Denoiser(lambda x, t: torch.tanh(x), Linear(), "sample"),
        lambda z: z.sum(1),
        Guidance(through=through),
    )
    tally = Tally(guided, lambda: calls.append(1))
    run(TABLE, tally, start(), KeyedNoise(4))
    assert len(calls) == 9
    asked = 6 * 9
    assert tally.costs == Costs(asked, asked if through == "network" else 0, asked, 0)
    plain = Tally(LINEAR)
    assert torch.equal(plain(start(), 0.4), LINEAR(start(), 0.4))
    assert plain.costs == Costs(6)


def test_shifts_and_selections_are_checked():
    steps = iterate(TABLE, LINEAR, start(), KeyedNoise(0))
    first = next(steps)
    with pytest.raises(InvalidArgument, match="draws no noise"):
        first.shift(torch.zeros(6, 3))
    with pytest.raises(ShapeError, match=r"ancestors must be int64 of shape \(6,\)"):
        first.select(torch.zeros(5, dtype=torch.long))
    with pytest.raises(ShapeError, match=r"int64 .* got torch.bool"):
        first.select(torch.ones(6, dtype=torch.bool))
    for stranger in (6, -1):
        with pytest.raises(InvalidArgument, match=r"ancestors must lie in 0\.\.5, got"):
            first.select(torch.tensor([0, 1, 2, 3, 4, stranger]))
    second = next(steps)
    with pytest.raises(ShapeError, match="delta must be shaped like x"):
        second.shift(torch.zeros(1, 3))


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        (start()[:3], r"a boundary's x must stay torch.float64 of shape \(6, 3\)"),
        (start().float(), "must stay torch.float64 .* got torch.float32"),
        (start().to("meta"), "a boundary's x must be a tensor on cpu, got meta"),
        ("x", "a boundary's x must be a tensor on cpu, got 'x'"),
    ],
)
def test_what_is_put_into_a_boundary_is_checked(changed, match):
    steps = iterate(TABLE, LINEAR, start(), KeyedNoise(0))
    next(steps).x = changed
    with pytest.raises(ShapeError, match=match):
        next(steps)


def test_a_shift_keeps_the_dtype_of_the_state():
    for boundary in iterate(TABLE, LINEAR, start(dtype=torch.float32), KeyedNoise(0)):
        if boundary.index == 1:
            boundary.shift(torch.ones(6, 3, dtype=torch.float64))
    assert boundary.x.dtype == torch.float32


def test_noise_that_the_first_query_has_used_cannot_be_changed_any_more():
    table = plan(Linear(), transitions=2, steps=2, rho=0.4, solver=Paper(s_range=(0.001, 0.999)))
    boundary = next(iterate(table, LINEAR, start(), KeyedNoise(0)))
    with pytest.raises(InvalidArgument, match="already used its noise"):
        boundary.shift(torch.zeros(6, 3))
    with pytest.raises(InvalidArgument, match="already used its noise"):
        boundary.select(torch.arange(6))


@pytest.mark.parametrize(
    ("row", "match"),
    [
        (0, "row 0 reads u, which holds nothing"),
        (1, "the update of row 1 reads u"),
        (2, "row 0 reads D_prev"),
    ],
)
def test_a_handmade_table_may_not_read_what_is_not_there(row, match):
    (planned,) = plan_transition(Linear(), 0.5, 0.8, rho=0.4, steps=2)
    first, second = planned.rows
    rows = {
        0: (replace(first, update=None), second),
        1: (Row(0.5, None, Mix(x=1.0)), second),
        2: (replace(first, emit=Mix(D_prev=1.0)), second),
    }[row]
    for law in (None, 1.0):
        with pytest.raises(PlanError, match=match):
            Table(Linear(), (replace(planned, rows=rows, law=law),), {})


def test_a_handmade_table_never_writes_into_the_noise():
    """u = ε in row 0, kept by row 1, added to in row 2: u is the noise itself until then."""
    rows = (
        Row(0.5, Mix(eps=1.0), Mix(x=0.5, u=0.1)),
        Row(0.6, None, Mix(x=0.5, u=0.1)),
        Row(0.7, Mix(u=1.0, D=1.0), Mix(u=1.0)),
    )
    (planned,) = plan_transition(Linear(), 0.5, 0.8, rho=0.4, steps=3)
    table = Table(Linear(), (replace(planned, rows=rows, law=None),), {})
    noise = start()
    run(table, LINEAR, start(), FixedNoise([noise]))
    assert torch.equal(noise, start())


def handmade(seed):
    """Four rows that combine what there is with coefficients of 0, 1/2, 1 and 2."""
    rng, rows, there = random.Random(seed), [], ["x", "eps", "D"]
    for number in range(4):
        if number == 1:
            there.append("D_prev")
        update, emit = ({}, {})
        for mix in (update, emit):
            if mix is emit and update and "u" not in there:
                there.append("u")
            mix.update((name, rng.choice((0, 0, 0, 0.5, 1.0, 1.0, 2.0))) for name in there)
            if mix is update and number % 2 and rng.random() < 0.3:
                update = {}
        rows.append(Row(0.5 + number / 10, Mix(**update) if update else None, Mix(**emit)))
    return tuple(rows)


def test_rows_of_any_kind_are_the_sums_they_say():
    """Against sums written down anew, whatever is kept in place of a register or written into."""
    (planned,) = plan_transition(Linear(), 0.5, 0.8, rho=0.4, steps=4)
    eps = start().flip(0)

    def summed(mix, held):
        return sum((weight * held[name] for name, weight in mix.terms()), torch.zeros(6, 3))

    for seed in range(60):
        transition = replace(planned, rows=handmade(seed), law=None)
        held, y = {"x": start(), "eps": eps}, start()
        for row in transition.rows:
            held |= {"D_prev": held.get("D"), "D": torch.tanh(y + row.time)}
            if row.update is not None:
                held["u"] = summed(row.update, held)
            y = summed(row.emit, held)
        denoiser = Denoiser(lambda x, t: torch.tanh(x + t[:, None]), Linear(), "sample")
        table = Table(Linear(), (transition,), {})
        given = (start(), eps.clone())
        torch.testing.assert_close(run(table, denoiser, given[0], FixedNoise([given[1]])), y)
        assert torch.equal(given[0], start()) and torch.equal(given[1], eps)


@pytest.mark.parametrize(
    ("options", "drawn"),
    [
        ({"rho": "ode"}, []),
        ({"rho": 0.4}, [1, 2]),
        ({"rho": 0.4, "solver": Paper(s_range=(0.001, 0.999))}, [0, 1, 2]),
    ],
)
def test_noise_is_drawn_once_where_a_transition_needs_it(options, drawn):
    asked = []

    def noise(step, like):
        asked.append(step)
        return KeyedNoise(0)(step, like)

    table = plan(Linear(), transitions=3, steps=2, **options)
    run(table, LINEAR, start(), noise)
    assert asked == drawn == [i for i, one in enumerate(table) if one.stochastic]


@pytest.mark.parametrize("rho", ["ode", 0.4])
def test_forward_gradients_are_differences(rho):
    """Of dual numbers, where the noise is none."""
    table = plan(Linear(), transitions=2, steps=3, rho=rho)
    tangent = start().flip(1)

    def moved(x):
        return run(table, LINEAR, x, KeyedNoise(3))

    with torch.autograd.forward_ad.dual_level():
        dual = moved(torch.autograd.forward_ad.make_dual(start(), tangent))
        found = torch.autograd.forward_ad.unpack_dual(dual).tangent
    h = 1e-5
    differences = (moved(start() + h * tangent) - moved(start() - h * tangent)) / (2 * h)
    torch.testing.assert_close(found, differences, rtol=1e-7, atol=1e-7)


def test_a_loop_of_transitions_may_share_one_seed():
    # N(0, 1) data: with the same ε at every step the variance would be three times too large.
    denoiser = GaussianMixture(torch.zeros(1, 1, dtype=torch.float64), 1.0).denoiser(Linear())
    times = [0.2, 0.35, 0.5, 0.65, 0.8, 0.9]
    x = torch.randn(4000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = x * math.hypot(0.2, 0.8)
    for t, t_next in pairwise(times):
        x = transition(denoiser, x, t, t_next, rho=0.0, steps=2, seed=0)
    exact = 0.9**2 + 0.1**2  # standard error of the variance: 2 %
    assert abs(x.var().item() / exact - 1) < 0.1


def test_posterior_draws_do_not_depend_on_the_batch_or_their_number():
    x = start(4)
    drawn = posterior(LINEAR, x, 0.4, samples=3, steps=3, seed=2)
    torch.testing.assert_close(
        posterior(LINEAR, x[:2], 0.4, samples=3, steps=3, seed=2), drawn[:, :2]
    )
    torch.testing.assert_close(posterior(LINEAR, x, 0.4, samples=2, steps=3, seed=2), drawn[:2])
    one = transition(LINEAR, x, 0.4, 1.0, rho=0.0, steps=3, seed=2)
    assert not torch.allclose(one, drawn[0])  # streams of their own


def test_what_a_user_holds_is_never_written_to():
    x, seen, noise = start(), [], [torch.randn(6, 3, dtype=torch.float64) for _ in range(3)]
    copies = [n.clone() for n in noise]

    class Recorder:
        path, evaluations_per_call = Linear(), 1

        def __call__(self, x, t):
            seen.append((x, x.clone()))
            return LINEAR(x, t)

    table = plan(Linear(), transitions=3, steps=5, rho=0.4)
    boundaries = [(b.x, b.x.clone()) for b in iterate(table, Recorder(), x, FixedNoise(noise))]
    assert all(torch.equal(a, b) for a, b in seen + boundaries)
    assert torch.equal(x, start())
    assert all(torch.equal(a, b) for a, b in zip(noise, copies))


def test_states_larger_than_a_cache_block_are_combined_whole():
    """Elementwise: a large state must do what its parts do, over block edges, and strided."""
    denoiser = Denoiser(lambda x, t: torch.tanh(x + t[0]), Linear(), prediction="sample")
    generator = torch.Generator().manual_seed(0)
    x, *noise = (torch.randn(2, 2**17 + 5, generator=generator) for _ in range(4))
    whole = run(TABLE, denoiser, x, FixedNoise(noise))
    few = slice(2**17 - 40, None)
    parts = run(TABLE, denoiser, x[:, few], FixedNoise([n[:, few] for n in noise]))
    torch.testing.assert_close(whole[:, few], parts, rtol=1e-5, atol=1e-6)
    with torch.enable_grad():
        graph = run(TABLE, denoiser, x.requires_grad_(), FixedNoise(noise))
    torch.testing.assert_close(graph.detach(), whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("solver", ["default", "first-order", "paper"])
def test_gradients_flow_and_agree_with_finite_differences(solver):
    x = start(1).requires_grad_()
    eps = torch.randn(1, 3, dtype=torch.float64)

    def step(x):
        return transition(LINEAR, x, 0.3, 0.7, rho=0.4, steps=3, solver=solver, noise=eps)

    assert torch.autograd.gradcheck(step, (x,))


# --- bad input --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "match"),
    [
        (torch.zeros(2, 3, dtype=torch.bfloat16), "float32 or float64"),
        (torch.zeros(2, 3, dtype=torch.int64), "float32 or float64"),
        (torch.tensor(1.0), "batch"),
        (torch.zeros(0, 3), "batch >= 1"),
        ([[1.0, 2.0, 3.0]], "got list"),
    ],
)
def test_bad_states_are_named(x, match):
    with pytest.raises(ShapeError, match=match):
        run(TABLE, LINEAR, x, KeyedNoise(0))


def test_a_state_with_nan_is_refused_before_any_evaluation():
    x = start()
    x[3, 1] = math.nan
    with pytest.raises(NonFinite, match="x contains NaN"):
        run(TABLE, Denoiser(lambda x, t: pytest.fail("asked"), Linear()), x, KeyedNoise(0))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_from_a_network_names_the_step_and_the_particles(bad):
    calls = []

    def network(x, t):
        calls.append(t)
        out = x.clone()
        if len(calls) == 5:
            out[1, 0] = out[4, 2] = bad
        return out

    denoiser = Denoiser(network, Linear(), prediction="sample")
    with pytest.raises(NonFinite, match=r"transition 1, evaluation 1 .* particles 1, 4 ") as caught:
        run(TABLE, denoiser, start(), KeyedNoise(0))
    assert caught.value.particles == (1, 4)
    assert len(calls) <= 7  # found at the next boundary at the latest


@pytest.mark.parametrize(("bad", "shown"), [(8, "6, 7"), (9, "6, 7, ...")])
def test_of_many_particles_with_nan_eight_are_shown(bad, shown):
    def network(x, t):
        return torch.where(torch.arange(len(x))[:, None] < bad, math.nan, x)

    denoiser = Denoiser(network, Linear(), prediction="sample")
    with pytest.raises(NonFinite) as caught:
        run(TABLE, denoiser, start(10), KeyedNoise(0))
    assert f"particles 0, 1, 2, 3, 4, 5, {shown} ({bad} of 10)" in str(caught.value)
    assert caught.value.particles == tuple(range(bad))


def test_a_denoiser_of_the_wrong_shape_or_dtype_is_named():
    class Wrong:
        path, evaluations_per_call = Linear(), 1

        def __init__(self, change):
            self.change = change

        def __call__(self, x, t):
            return self.change(x)

    for change in (lambda x: x[:1], lambda x: x.float()):
        with pytest.raises(ShapeError, match="like its input"):
            run(TABLE, Wrong(change), start(), KeyedNoise(0))


def test_table_and_denoiser_must_share_the_path():
    with pytest.raises(InvalidArgument, match="planned for Linear"):
        run(TABLE, MIXTURE.denoiser(Cosine()), start(), KeyedNoise(0))


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"rho": 1.2}, InvalidArgument, r"\[-1, 1\]"),
        ({"rho": None}, InvalidArgument, "rho"),
        ({"rho": "dpm"}, UnknownName, "Did you mean 'ddpm'"),
        ({"steps": 0}, InvalidArgument, "steps must be an integer >= 1"),
        ({"steps": 2.0}, InvalidArgument, "steps must be an integer >= 1, got 2.0"),
        ({"t_next": 0.2}, TimeError, "need t < t_next"),
        ({"t": -0.1}, TimeError, r"\[0, 1\]"),
        ({"t_next": 1.5}, TimeError, r"t_next must lie in \[0, 1\]"),
        ({"solver": "heun"}, UnknownName, "solver"),
        ({"solver": 3}, InvalidArgument, "solver"),
        ({"seed": -1}, InvalidArgument, "seed"),
        ({"seed": 1, "noise": torch.zeros(6, 3)}, InvalidArgument, "not several"),
        ({"seed": 1, "generator": torch.Generator()}, InvalidArgument, "not both"),
        (
            {"generator": "a"},
            InvalidArgument,
            "generator must be a torch.Generator or None, got 'a'",
        ),
        ({"noise": torch.zeros(1, 3)}, ShapeError, r"tensor like x, \(6, 3\), got \(1, 3\)"),
        ({"noise": [0.0] * 18}, ShapeError, "got list"),
        ({"noise": torch.full((6, 3), math.nan)}, NonFinite, "noise of transition 0"),
        (
            {"noise": torch.zeros(6, 3), "solver": "euler-maruyama", "rho": None},
            InvalidArgument,
            "one ε",
        ),
    ],
)
def test_bad_arguments_of_a_transition_are_named(arguments, error, match):
    given = {"t": 0.3, "t_next": 0.6, "rho": 0.4, "steps": 3, **arguments}
    t, t_next = given.pop("t"), given.pop("t_next")
    with pytest.raises(error, match=match):
        transition(LINEAR, start(), t, t_next, **given)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"transitions": 0}, InvalidArgument, "transitions must be an integer >= 1"),
        (
            {"generator": "a"},
            InvalidArgument,
            "generator must be a torch.Generator or None, got 'a'",
        ),
        ({"device": "bad"}, InvalidArgument, "device must be a torch.device .* got 'bad'"),
        ({"times": [0.0, 0.5, 0.4, 1.0]}, TimeError, "times must increase"),
        ({"times": [0.1, 0.5, 0.7, 1.0]}, TimeError, "samples start at noise"),
        ({"times": [0.0, 0.5, 0.7, 0.9]}, TimeError, "end at data"),
        ({"times": 0.5}, TimeError, "a list of 4 times, got 0.5"),
        ({"solver": Paper}, InvalidArgument, "solver"),
        ({"rho": "dppm"}, UnknownName, "Did you mean 'ddpm'"),
        ({"rho": 7.0, "transitions": 1}, InvalidArgument, r"\[-1, 1\], got 7.0"),
        ({"times": "karas"}, UnknownName, "Did you mean 'karras'"),
        ({"rho": [0.1, 0.2]}, InvalidArgument, "rho lists 2 values for 3"),
        ({"steps": [1, 2]}, InvalidArgument, "steps lists 2 values for 3"),
        ({"start": "warm"}, UnknownName, "start"),
        ({"randomness": "global"}, UnknownName, "randomness"),
        ({"shape_or_noise": (0, 3)}, InvalidArgument, "shape"),
        ({"shape_or_noise": ()}, InvalidArgument, "shape"),
        ({"dtype": torch.float16}, ShapeError, "float32 or torch.float64"),
    ],
)
def test_bad_arguments_of_a_sample_are_named(arguments, error, match):
    given = {"shape_or_noise": (2, 3), "transitions": 3, "steps": 2, "rho": 0.4, **arguments}
    shape = given.pop("shape_or_noise")
    with pytest.raises(error, match=match):
        sample(LINEAR, shape, **given)


def test_a_posterior_needs_a_positive_number_of_samples():
    with pytest.raises(InvalidArgument, match="samples must be an integer >= 1"):
        posterior(LINEAR, start(), 0.5, samples=0, steps=2)


# --- randomness -------------------------------------------------------------------------------


def test_noise_belongs_to_seed_purpose_step_and_particle():
    like = torch.empty(5, 33)
    whole = KeyedNoise(7)(2, like)
    assert torch.equal(KeyedNoise(7, 3)(2, like[:2]), whole[3:])  # split anywhere
    assert torch.equal(KeyedNoise(7)(2, like.double()), whole.double())  # any dtype
    assert torch.equal(KeyedNoise(7)(2, torch.empty(5, 3, 11)).view(5, 33), whole)
    different = [
        KeyedNoise(8)(2, like),
        KeyedNoise(7)(3, like),
        KeyedNoise(7)(2, like, START),
        KeyedNoise(7)(2, like, POSTERIOR),
        KeyedNoise(7, 1)(2, like),
    ]
    assert all(not torch.equal(whole, other) for other in different)
    assert len(torch.unique(whole, dim=0)) == 5


def test_noise_does_not_depend_on_how_it_is_grouped_for_the_cache():
    whole = KeyedNoise(7)(0, torch.empty(400, 1001))
    assert torch.equal(KeyedNoise(7, 399)(0, torch.empty(1, 1001)), whole[399:])


@pytest.mark.parametrize("source", [KeyedNoise(11), StreamNoise(11)])
def test_noise_is_standard_normal(source):
    # 2^18 draws: each statistic is within 5 standard errors of its expectation (false alarm of
    # all of them together below 1e-5; the seed is fixed).
    drawn = source(0, torch.empty(512, 512, dtype=torch.float64)).flatten()
    n = drawn.numel()
    for power, mean, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96), (6, 15, 10170)):
        assert abs(drawn.pow(power).mean() - mean) < 5 * math.sqrt(variance / n)
    pairs = drawn.view(512, 512)
    for lag in (1, 2, 256):
        correlation = (pairs[:, lag:] * pairs[:, :-lag]).mean()
        assert abs(correlation) < 5 / math.sqrt(512 * (512 - lag))
    across = (pairs[1:] * pairs[:-1]).mean()
    assert abs(across) < 5 / math.sqrt(511 * 512)
    below = (drawn < -2.0).double().mean()
    assert abs(below - 0.0227501) < 5 * math.sqrt(0.02275 * 0.97725 / n)
    assert drawn.abs().max() > 4.0


def test_streams_and_generators():
    like = torch.empty(4, 3)
    assert torch.equal(StreamNoise(1)(0, like), StreamNoise(1)(0, like))
    assert not torch.equal(StreamNoise(1)(0, like), StreamNoise(1)(1, like))
    assert not torch.equal(StreamNoise(1)(0, like), StreamNoise(1)(0, like, START))
    generator = torch.Generator().manual_seed(3)
    drawn = GeneratorNoise(generator)(0, like)
    assert torch.equal(drawn, torch.randn(4, 3, generator=torch.Generator().manual_seed(3)))
    with pytest.raises(InvalidArgument, match="2 noises given"):
        FixedNoise([like, like])(2, like)


def test_purposes_are_distinct():
    assert len({START, TRANSITION, POSTERIOR, glass_flows.noise.RESAMPLING}) == 4


def test_samples_do_not_depend_on_batch_splitting_or_dtype():
    settings = {"transitions": 3, "steps": 4, "rho": 0.4, "seed": 9}
    network = torch.nn.Sequential(torch.nn.Linear(3, 16), torch.nn.SiLU(), torch.nn.Linear(16, 3))

    def denoiser(**options):
        return Denoiser(lambda x, t: network(x), Linear(), prediction="sample", **options)

    with torch.no_grad():
        whole = sample(denoiser(), (7, 3), **settings)
        split = sample(denoiser(max_batch=2), (7, 3), **settings)
        few = sample(denoiser(), (3, 3), **settings)
    torch.testing.assert_close(split, whole, rtol=0, atol=1e-5)
    torch.testing.assert_close(few, whole[:3], rtol=0, atol=1e-5)
    double = sample(LINEAR, (5, 3), **settings, dtype=torch.float64)
    single = sample(LINEAR, (5, 3), **settings)
    torch.testing.assert_close(single.double(), double, rtol=0, atol=2e-5)


def test_without_a_seed_the_global_generator_rules():
    def draw():
        return sample(LINEAR, (2, 3), transitions=2, steps=2, rho=0.0)

    torch.manual_seed(4)
    first, second = draw(), draw()
    torch.manual_seed(4)
    assert torch.equal(first, draw())
    assert not torch.equal(first, second)


# --- the one-call samplers --------------------------------------------------------------------


@pytest.mark.parametrize("path", [Linear(), VariancePreserving(), EDM()], ids=lambda p: p.name)
@pytest.mark.parametrize("start_as", ["pure", "trained"])
def test_given_noise_is_standard_normal_noise_scaled_to_the_first_time(path, start_as):
    settings = {"transitions": 2, "steps": 3, "rho": 0.3, "start": start_as}
    noise = start()
    table = plan(path, **settings)
    scale = path.sigma(0) if start_as == "pure" else math.hypot(path.alpha(0), path.sigma(0))
    assert table.start_scale == pytest.approx(scale, rel=1e-12)
    expected = run(table, MIXTURE.denoiser(path), noise * scale, KeyedNoise(2))
    torch.testing.assert_close(sample(MIXTURE.denoiser(path), noise, seed=2, **settings), expected)


@pytest.mark.parametrize("shape", [(2, 3), (2, 1, 3), (2, 3, 1, 1)])
def test_any_shape_after_the_batch(shape):
    mixture = GaussianMixture(MIXTURE.means.view(4, *shape[1:]), 0.4)
    z = sample(mixture.denoiser(Linear()), shape, transitions=2, steps=3, rho=0.4, seed=1)
    flat = sample(LINEAR, (2, 3), transitions=2, steps=3, rho=0.4, seed=1)
    torch.testing.assert_close(z.view(2, 3), flat)


def test_posterior_draws_are_transitions_to_data():
    x = start(2)
    drawn = posterior(LINEAR, x, 0.4, samples=5, steps=4, seed=6)
    assert drawn.shape == (5, 2, 3)
    exact = torch.stack([MIXTURE.posterior_sample(Linear(), x, 0.4, seed=s) for s in range(500)])
    many = posterior(LINEAR, x, 0.4, samples=500, steps=12, seed=6)
    error = torch.sqrt((exact.var(0) + many.var(0)) / 500)
    assert ((exact.mean(0) - many.mean(0)).abs() < 4.5 * error).all()  # false alarm below 1e-4


def test_posterior_draws_from_pure_noise_differ():
    drawn = posterior(LINEAR, start(1), 0.0, samples=4, steps=4, seed=6)
    assert len(torch.unique(drawn.view(4, 3), dim=0)) == 4


def test_sampling_keeps_no_graph_unless_asked():
    layer = torch.nn.Linear(3, 3)
    denoiser = Denoiser(lambda x, t: layer(x), Linear(), prediction="sample")
    settings = {"transitions": 2, "steps": 2, "rho": 0.4, "seed": 0}
    assert not sample(denoiser, (2, 3), **settings).requires_grad
    assert sample(denoiser, (2, 3), differentiable=True, **settings).requires_grad


def test_progress_can_be_shown(capsys):
    sample(LINEAR, (2, 3), transitions=2, steps=2, rho=0.4, seed=0, progress=True)
    shown = capsys.readouterr()
    assert "sampling" in shown.err
    assert shown.out == ""
    sample(LINEAR, (2, 3), transitions=2, steps=2, rho=0.4, seed=0, progress=False)
    assert capsys.readouterr().err == ""


def test_a_network_in_place_of_a_denoiser_is_named():
    network = torch.nn.Linear(3, 3)
    for call in (
        lambda: sample(network, (2, 3), transitions=1, steps=1, rho=0.0),
        lambda: transition(network, start(), 0.3, 0.6, rho=0.0, steps=1),
        lambda: posterior(network, start(), 0.3, samples=1, steps=1),
    ):
        with pytest.raises(InvalidArgument, match=r"wrap a network as glass_flows.Denoiser"):
            call()
    with pytest.raises(InvalidArgument, match="path must be an object such as"):
        plan("linear", transitions=1, steps=1, rho=0.0)
