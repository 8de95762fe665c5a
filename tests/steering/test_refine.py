"""Refinement against exact laws.

The data are N(m, s²) and the solver is planned for that s, so that every draw has the exact law; on
a mixture draws take enough evaluations. A chain that begins in the target stays in it, whatever the
reward: so laws are judged after moves from draws of p whose weights are known.
"""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace

import pytest
import torch
from test_evidence import LAW, MEAN, SPREAD, evidence, hard, wave

import glass_flows
from glass_flows import Denoiser, Refine, Sampler, refine, steer
from glass_flows.errors import InvalidArgument, ShapeError
from glass_flows.execute import run as run_table
from glass_flows.noise import KeyedNoise
from glass_flows.paths import Linear
from glass_flows.plans import Default, plan_transition
from glass_flows.runs import RunFolder
from glass_flows.steering import RESAMPLERS, Acceptance, Adaptive, Ramp, Shards, loop
from glass_flows.steering.refinement import BEGINNING, evaluations_of, time_on
from glass_flows.worlds import GaussianMixture
from statistics_rules import PATHS, SAMPLES, Mixture, accept, covering, law_p_values

EXACT = Default(sigma_data=SPREAD)
in_law = pytest.mark.usefixtures("one_stream")


def denoiser(path="linear"):
    return LAW.denoiser(PATHS[path])


def slope(z):
    return z[:, 0]


def run(reward=slope, path="linear", **given):
    options = {
        "particles": 4, "scale": 1.0, "move_steps": 2, "returned": "last", "seed": 0, "steps": 2,
        "solver": EXACT, "dtype": torch.float64,
    }  # fmt: skip
    return refine(denoiser(path), reward, shape=(1,), **{**options, **given})


# ------------------------------------------------------------------------------------------ the law


@in_law
@pytest.mark.parametrize(
    "path",
    [
        pytest.param(p, marks=[pytest.mark.slow] if p in ("vp", "edm", "cosine") else [])
        for p in PATHS
    ],
)
def test_chains_stay_in_the_tilted_law(path):
    """Of a linear reward that is N(m + λ s², s²), on every path; and they do move."""
    law = [1.0], [[MEAN + 1.2 * SPREAD**2]], [SPREAD**2]
    noise = torch.randn(SAMPLES, 1, generator=torch.Generator().manual_seed(1)).double()
    z = law[1][0][0] + SPREAD * noise
    result = run(  # chains without exchange: one population is as good as many
        path=path, particles=SAMPLES, init=z, moves=3, move_times=(0.2, 0.5), scale=1.2,
        ess_threshold=0.0,
    )  # fmt: skip
    assert accept(law_p_values(result.samples[0], law))
    assert (result.samples != z).double().mean() > 0.8
    assert 0.3 < float(result.acceptance.mean()) < 0.95


@in_law
def test_chains_come_to_the_tilted_law():
    """From p, at a constant λ, whose weights are not counted."""
    result = run(
        particles=4_000, moves=25, move_times=0.2, schedule="constant", ess_threshold=0.0,
        scale=1.2,
    )  # fmt: skip
    law = [1.0], [[MEAN + 1.2 * SPREAD**2]], [SPREAD**2]
    assert accept(law_p_values(result.samples[0], law))
    assert result.biases == ()


@in_law
def test_a_move_is_reversible_for_the_law_of_the_model():
    """(z, z') and (z', z) have one law, on a mixture: E[f(z) g(z') - g(z) f(z')] = 0."""
    path, mixture = Linear(), Mixture()
    exact = GaussianMixture(torch.from_numpy(mixture.means), mixture.stds, mixture.weights)
    z = exact.sample(SAMPLES, generator=torch.Generator().manual_seed(3))
    result = refine(
        exact.denoiser(path), lambda z: z[:, 0], init=z, scale=0.0, shape=(2,), seed=1,
        particles=SAMPLES, moves=1, move_times=0.4, move_steps=16, returned="last",
    )  # fmt: skip
    after = result.samples[0]
    assert (after != z).all()  # at λ = 0 every proposal is accepted
    assert accept(law_p_values(after, mixture.law))
    tests = [lambda v: v[:, 0], lambda v: v[:, 1] ** 2, lambda v: (v[:, 0] * v[:, 1]).sin()]
    flows = [f(z) * g(after) - g(z) * f(after) for f, g in zip(tests, tests[1:] + tests[:1])]
    scores = torch.stack([flow.mean() / flow.std() * SAMPLES**0.5 for flow in flows])
    assert accept(torch.special.erfc(scores.abs() / 2**0.5))


def test_a_move_goes_through_the_noising_and_the_transition_of_its_time():
    """One accepted move by hand: x_t = α z + σ ε₀, then the table t → 1 with ε₁."""
    path = PATHS["cosine"]
    z = torch.tensor([[0.2], [0.9]], dtype=torch.float64)
    result = run(
        path="cosine", particles=2, init=z, moves=1, move_times=0.4, move_steps=3, scale=0.0
    )
    t = path.time(0.4 / 0.6)
    noise = KeyedNoise(0)
    x = path.alpha(t) * z + path.sigma(t) * noise(0, z, glass_flows.noise.MOVE, 0)
    table = plan_transition(path, t, 1.0, rho=0.0, steps=3, solver=EXACT)

    def inner(step, like):
        return noise(0, like, glass_flows.noise.MOVE, 1)

    expected = run_table(table, denoiser("cosine"), x, inner)
    assert torch.equal(result.samples[0], expected)
    assert result.move_times.tolist() == [0.4]


def test_moves_of_discrete_models_are_at_trained_times():
    path = PATHS["discrete"]
    assert all(time_on(path, t) in path.trained_times for t in (0.02, 0.3, 0.77, 0.99))
    assert time_on(Linear(), 0.3) == pytest.approx(0.3, abs=1e-15)


# ------------------------------------------------------------------------------------- the evidence

CASES = covering(
    ["linear", "constant", (0.2, 0.9, 0.9, 0.5), lambda u: u**2],
    [0.0, 0.5, 1.0],
    list(RESAMPLERS),
    [Ramp(), 0.3, (0.2, 0.7)],
)


@in_law
@pytest.mark.slow
@pytest.mark.parametrize("case", range(len(CASES)))
def test_the_evidence_is_unbiased_where_all_is_fixed_beforehand(case):
    """4,000 populations at least, of N = 4; every two settings meet."""
    schedule, threshold, scheme, times = CASES[case]
    result = run(
        wave, schedule=schedule, ess_threshold=threshold, resampling=scheme, move_times=times,
        moves=4, populations=4_000, scale=1.3, seed=case,
    )  # fmt: skip
    assert result.biases == ()
    ratio = result.log_evidence.exp() / evidence(wave, 1.3)
    score = (ratio.mean() - 1.0) / (ratio.std() / len(ratio) ** 0.5)
    assert accept(torch.special.erfc(score.abs() / 2**0.5))


@in_law
@pytest.mark.parametrize("threshold", [pytest.param(0.0, marks=pytest.mark.slow), 0.5])
def test_weighted_chains_have_the_law_of_the_target(threshold):
    """Mean of the samples under weights that count the populations' evidence, too."""
    result = run(populations=4_000, moves=3, ess_threshold=threshold, scale=1.5)
    weight = (result.log_evidence[:, None] + result.log_weights.log_softmax(1)).exp()
    moment = (weight * (result.samples[..., 0] - MEAN - 1.5 * SPREAD**2)).sum(1)
    score = moment.mean() / moment.std() * len(moment) ** 0.5
    assert accept(torch.special.erfc(score.abs() / 2**0.5))


@in_law
def test_what_is_excluded_weighs_nothing():
    result = run(hard, particles=16, populations=1_000, moves=3, scale=1.0)  # none all excluded
    assert result.biases == ()
    assert (result.rewards[result.log_weights > -math.inf] == 0.0).all()
    ratio = result.log_evidence.exp() / evidence(hard, 1.0)
    score = (ratio.mean() - 1.0) / (ratio.std() / len(ratio) ** 0.5)
    assert accept(torch.special.erfc(score.abs() / 2**0.5))


def test_a_chain_leaves_what_is_excluded_and_does_not_come_back():
    z = torch.full((64, 1), -1.0, dtype=torch.float64)
    result = run(hard, init=z, particles=64, moves=8, move_times=0.1, degenerate="carry")
    assert (result.rewards == 0.0).all()
    assert (result.log_weights == -math.inf).all()  # of what was given; it has no weight


@in_law
def test_a_pilot_fixes_what_it_has_chosen():
    """λ and t from a run with noise of its own: unbiased again, and nothing is named."""
    adaptive = Refine(4, 2.0, moves=4, move_times="adaptive", schedule="adaptive:0.7")
    options = {"shape": (1,), "sampler": Sampler.ode(2), "dtype": torch.float64}
    pilot = refine(denoiser(), wave, adaptive, populations=50, seed=1, **options)
    method = adaptive.fixed(pilot)
    assert method.move_times == tuple(pilot.move_times.tolist()) and len(method.schedule) == 4
    method = replace(method, returned="last", move_steps=2)
    sampler = replace(Sampler.ode(2), solver=EXACT)
    result = refine(
        denoiser(), wave, method, sampler, populations=3_000, seed=2, shape=(1,),
        dtype=torch.float64,
    )  # fmt: skip
    assert result.biases == ()
    ratio = result.log_evidence.exp() / evidence(wave, 2.0)
    score = (ratio.mean() - 1.0) / (ratio.std() / len(ratio) ** 0.5)
    assert accept(torch.special.erfc(score.abs() / 2**0.5))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"schedule": "adaptive"}, "ESS of the chains"),
        ({"move_times": "adaptive"}, "chains themselves accepted"),
        ({"returned": "best"}, "best sample is returned"),
        ({"until": 0.5}, "reward is reached"),
        ({"rescore": 1}, "random"),
        ({"init": torch.zeros(1, dtype=torch.float64)}, "no known law"),
    ],
)
def test_what_biases_the_law_is_named(given, said):
    result = run(**given)
    (bias,) = result.biases
    assert said in bias


def test_classifier_free_guidance_is_named():
    model = Denoiser(
        lambda x, t, c: x * c[:, None], Linear(), conditioning={"c": torch.ones(1)},
        unconditional={"c": torch.zeros(1)}, guidance_scale=2.0,
    )  # fmt: skip
    (bias,) = refine(model, slope, shape=(1,), moves=1, returned="last", seed=0).biases
    assert "classifier-free guidance" in bias


# ------------------------------------------------------------------------- under guidance
#
# Two networks of N(m, s²) that differ in m alone are under any w one of N(m_w, s²): here a guided D
# is a posterior mean, and moves have a law.


def centre(w):
    return MEAN + 0.4 * (w - 1.0)


def network(x, t, c):
    """D of N(c, s²)."""
    a, s = t[:, None], 1.0 - t[:, None]
    return (c[:, None] * s**2 + SPREAD**2 * a * x) / (s**2 + SPREAD**2 * a**2)


def guided(w, inside=False):
    if not inside:
        return Denoiser(
            network, Linear(), "sample", guidance_scale=w,
            conditioning={"c": torch.tensor([centre(1.0)], dtype=torch.float64)},
            unconditional={"c": torch.tensor([centre(0.0)], dtype=torch.float64)},
        )  # fmt: skip

    def network_at(w):
        return lambda x, t: network(x, t, torch.tensor([centre(w)], dtype=torch.float64))

    return Denoiser(
        network_at(w), Linear(), "sample", passes=2, network_cfg=w, network_at=network_at
    )


@in_law
@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize(
    ("w", "share", "moved"), [(5.0, None, 3.0), (3.0, 0.25, 1.5), (5.0, 0.0, 1.0), (2.0, 1, 2.0)]
)
def test_moves_have_their_share_of_the_guidance(w, share, moved, inside):
    """Chains that begin in the tilted law of that guidance stay in it."""
    law = [1.0], [[centre(moved) + 1.2 * SPREAD**2]], [SPREAD**2]
    noise = torch.randn(SAMPLES, 1, generator=torch.Generator().manual_seed(1)).double()
    result = refine(
        guided(w, inside), slope, shape=(1,), init=law[1][0][0] + SPREAD * noise, moves=3,
        move_times=(0.2, 0.5), particles=SAMPLES, ess_threshold=0.0, solver=EXACT, seed=0,
        scale=1.2, returned="last", move_guidance=share, move_steps=2,
    )  # fmt: skip
    assert accept(law_p_values(result.samples[0], law))
    passes = 1 if moved == 1.0 and not inside else 2
    assert result.network_evaluations == SAMPLES * 3 * 2 * passes


def test_what_is_drawn_has_all_the_guidance():
    one = {"shape": (1,), "seed": 0, "moves": 0, "scale": 1.0, "dtype": torch.float64}
    for share in (None, 0.0, 1.0):
        drawn = refine(guided(4.0), slope, move_guidance=share, **one).samples
        torch.testing.assert_close(drawn, refine(guided(4.0, True), slope, **one).samples)


def test_moves_under_less_guidance_take_fewer_evaluations():
    one = {"shape": (1,), "seed": 0, "particles": 1, "move_times": 0.3, "scale": 1.0, "moves": 1}
    for share, moved in ((None, 3.0), (1.0, 5.0), (0.5, 3.0), (0.25, 2.0)):
        method = Refine(1, moves=1, move_times=0.3, move_guidance=share)
        asked = evaluations_of(0.3, moved)
        assert method.evaluations(Sampler.ode(6), 5.0) == 6 + asked
        result = refine(guided(5.0), slope, move_guidance=share, **one)
        assert result.network_evaluations == 2 * (6 + asked)


def test_in_micro_batches_moves_are_the_same():
    one = {"shape": (1,), "seed": 0, "scale": 1.0, "moves": 2, "dtype": torch.float64}
    parts = refine(guided(5.0, True), slope, shards=Shards(micro_batch=3), **one)
    whole = refine(guided(5.0, True), slope, **one)
    assert torch.equal(parts.samples, whole.samples)
    assert parts.network_evaluations == whole.network_evaluations


def test_a_denoiser_that_knows_one_guidance_moves_under_it():
    """As before there was a choice; and it is not asked for another."""
    alone = replace(guided(5.0, True), network_at=None)
    one = {"shape": (1,), "seed": 0, "scale": 1.0, "moves": 3, "dtype": torch.float64}
    whole = refine(guided(5.0), slope, move_guidance=1, **one)
    torch.testing.assert_close(refine(alone, slope, **one).samples, whole.samples)
    with pytest.raises(InvalidArgument, match=r"asks for guidance 2, .* knows 5 alone"):
        refine(alone, slope, move_guidance=0.25, **one)
    with pytest.raises(InvalidArgument, match="this denoiser is under none: leave it out"):
        run(move_guidance=0.25)


def test_a_network_is_guided_from_inside_or_from_outside():
    with pytest.raises(InvalidArgument, match=r"network_at is for .* guidance_scale=2 guides it"):
        replace(guided(5.0, True), unconditional={}, guidance_scale=2.0)


def test_a_solver_that_was_told_of_guidance_has_its_share_in_moves():
    one = {"shape": (1,), "seed": 0, "scale": 1.0, "moves": 3, "dtype": torch.float64}
    told = refine(guided(5.0), slope, solver="default:guidance=5", **one)
    assert torch.equal(told.samples, refine(guided(5.0), slope, **one).samples)
    other = refine(guided(5.0), slope, solver="default:guidance=1", **one)
    assert not torch.allclose(told.samples, other.samples, atol=1e-9)
    told = run(solver="default:guidance=5", moves=3, move_times=0.2, move_steps=4)  # says nothing
    same = run(solver="default:guidance=5", moves=3, move_times=0.2, move_steps=4, move_guidance=1)
    assert torch.equal(told.samples, same.samples)


@pytest.mark.parametrize(
    ("share", "said"), [(None, "D is no posterior mean"), (0.0, "moves are without"), (1.0, "no p")]
)
def test_what_guidance_does_to_the_law_is_named(share, said):
    one = {"shape": (1,), "seed": 0, "scale": 1.0, "moves": 1, "returned": "last"}
    (bias,) = refine(guided(5.0), slope, move_guidance=share, **one).biases
    assert said in bias


# ------------------------------------------------------------------------------------- its settings


@in_law
def test_the_best_of_each_chain_is_returned():
    best = run(returned="best", populations=50, moves=6, ess_threshold=0.0, scale=0.2)
    last = run(returned="last", populations=50, moves=6, ess_threshold=0.0, scale=0.2)
    assert (best.rewards >= last.rewards).all() and (best.rewards > last.rewards).any()
    assert torch.equal(best.samples[..., 0], best.rewards)
    seen = [last.rewards]
    run(
        returned="last", populations=50, moves=6, ess_threshold=0.0, scale=0.2,
        on_boundary=lambda step: seen.append(step.rewards),
    )  # fmt: skip
    assert torch.equal(best.rewards, torch.stack(seen).amax(0))


def test_it_ends_when_every_population_has_the_reward():
    steps = []
    result = run(until=1.0, populations=5, moves=500, returned="best", on_boundary=steps.append)
    assert (result.rewards.amax(1) >= 1.0).all()
    assert len(steps) == len(result.ess) < 500
    assert steps[-1].boundary.final and float(result.shares[-1].min()) == 1.0
    assert torch.stack([step.rewards for step in steps[:-1]]).amax((0, 2)).min() < 1.0


@pytest.mark.slow
@in_law
def test_longer_moves_where_more_is_accepted():
    """Adaptive t comes to the acceptance that was asked for."""
    for rate in (0.4, 0.8):
        result = run(
            particles=120, moves=60, move_times=Acceptance(rate), scale=4.0, schedule="constant",
            ess_threshold=0.0,
        )  # fmt: skip
        assert float(result.acceptance[30:].mean()) == pytest.approx(rate, abs=0.05)


def test_lambda_by_the_effective_sample_size():
    result = run(schedule=Adaptive(0.6), moves=5, particles=64, scale=6.0, ess_threshold=0.9)
    taken = result.shares[:-1, 0]
    assert (taken.diff() >= 0).all() and taken[0] < 1.0
    assert float(result.ess[0]) == pytest.approx(0.6 * 64, rel=1e-3)


@pytest.mark.parametrize(
    "init", [(1,), (3, 1), (3, 2, 1), (6, 1)], ids=["all", "population", "particle", "rows"]
)
def test_it_begins_with_what_is_given(init):
    z = torch.arange(float(math.prod(init)), dtype=torch.float64).view(init)
    result = run(init=z, particles=2, populations=3, moves=0)
    each = {1: [0.0] * 6, 3: [0.0, 0.0, 1.0, 1.0, 2.0, 2.0], 6: [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]}
    assert result.samples.flatten().tolist() == each[z.numel()]
    assert result.network_evaluations == 0 and result.log_evidence.isnan().all()
    # Without a move λ has no say, and asks no pilot.
    more = {"init": z, "particles": 2, "populations": 3, "scale": "auto"}
    assert run(moves=0, **more).network_evaluations == 0
    assert run(moves=1, **more).strength.found.evaluations > 0


def test_an_init_of_another_shape_is_refused():
    with pytest.raises(ShapeError, match=r"init must be \(1,\) for all"):
        run(init=torch.zeros(5, 1), populations=3)


@in_law
def test_rescoring_takes_the_luck_out_of_random_rewards():
    """A judge that answers with noise of standard deviation 1: chains keep lucky scores."""

    def judge():
        generator = torch.Generator().manual_seed(0)
        return lambda z: z[:, 0] + torch.randn(len(z), generator=generator, dtype=z.dtype)

    given = {"populations": 300, "moves": 8, "scale": 2.0, "returned": "best"}
    lucky, fresh = run(judge(), **given), run(judge(), rescore=4, **given)
    assert torch.equal(lucky.samples, fresh.samples)
    truth = lucky.samples[..., 0]
    assert float((lucky.rewards - truth).mean()) > 0.7
    assert abs(float((fresh.rewards - truth).mean())) < 6 * 0.5 / 1200**0.5
    assert fresh.reward_evaluations == lucky.reward_evaluations + 4 * 1200


def test_what_it_costs():
    result = run(populations=3, moves=5, move_steps=(2, 3), steps=7)
    assert result.network_evaluations == 12 * (7 + 2 + 3 + 2 + 3 + 2)
    assert result.reward_evaluations == 12 * 6
    method = Refine(moves=5, move_steps=(2, 3))
    assert method.evaluations(Sampler.ode(7)) == 19
    assert method.calls(Sampler.ode(7).plan(Linear())) == 19
    assert method.calls(Sampler.ode(7).plan(Linear()), first=1) == 3 + 2 + 3 + 2
    long = Refine(moves=2, move_times=0.3)  # of 3 each, as nothing is said of guidance
    assert long.evaluations(Sampler.ode(7)) == long.calls(Sampler.ode(7).plan(Linear())) == 7 + 6
    assert long.filling(7 + 6, 7).moves == 2


def test_it_begins_with_a_short_ode():
    alone = refine(denoiser(), slope, shape=(1,), particles=1, moves=0, seed=0, scale=1.0)
    assert alone.network_evaluations == BEGINNING == 6


def test_its_news_are_of_rewards_and_of_what_moves_accepted():
    told = []
    run(moves=2, on_boundary=lambda step: told.append((step, step.news())))
    for k, (step, news) in enumerate(told):
        assert (step.boundary.index, step.boundary.t) == (k, 1.0)  # clean
        share = f", {step.accepted.double().mean():.0%} accepted" if k else ""
        assert news == (
            f"best {step.best_rewards.max():.4g}, mean {step.rewards.mean():.4g}, "
            f"{4 * (2 + 2 * k)} evaluations{share}"
        )
    assert len(told) == 3


def test_held_out_rewards_are_looked_at_from_lambda_0_to_its_share_ahead(monkeypatch):
    rungs = []
    monkeypatch.setattr(loop, "falls", lambda found: rungs.extend(found) or ())
    result = run(moves=2, scale=3.0, schedule=(0.25, 0.5), also={"held": lambda z: -z[:, 0]})
    assert [rung.scale for rung in rungs] == [0.0, 0.75, 1.5, 3.0]
    assert [rung.move for rung in rungs] == [None, 0, 1, 2]
    assert (rungs[0].weights == 0.25).all() and (rungs[1].weights != 0.25).any()
    last = rungs[-1]
    assert torch.equal(last.also["held"], -result.samples[..., 0])
    torch.testing.assert_close(last.rewards, result.rewards)
    rungs.clear()
    run(moves=2, scale=3.0, init=torch.zeros(1), also={"held": slope})  # of no known law
    assert [(rung.scale, rung.move) for rung in rungs] == [(3.0, 0), (3.0, 1), (3.0, 2)]


def test_what_cannot_move_is_refused_before_the_network_is_asked():
    asked = []
    model = LAW.denoiser(Linear())

    class Counting:
        path, evaluations_per_call = model.path, 1

        def __call__(self, x, t):
            asked.append(t)
            return model(x, t)

    with pytest.raises(InvalidArgument, match="Euler-Maruyama has none: give another solver"):
        refine(Counting(), slope, shape=(1,), solver="euler-maruyama", seed=0)
    assert not asked


def test_as_many_moves_as_evaluations_last():
    method = Refine(move_times=(0.3, 0.7))
    for budget, guidance in itertools.product((3, 20, 47), (1.0, 3.0)):
        filled = method.filling(budget, 6, guidance)
        more = replace(filled, moves=filled.moves + 1)
        assert more.evaluations(Sampler.ode(6), guidance) > budget
        spent = filled.evaluations(Sampler.ode(6), guidance)
        assert spent <= budget or filled.moves == 1


def test_ramps_and_evaluations_of_moves_are_as_documented():
    """From first to last evenly; 3 evaluations, under guidance ceil(1.5 (w - 1)) more, w at most 7,
    before t = 0.6."""
    ramp = Refine(moves=4, move_times="ramp:0.2:last=0.8")
    assert [ramp.time(k) for k in range(4)] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert Refine(moves=1, move_times="ramp:0.2:last=0.8").time(0) == 0.2
    assert replace(ramp, moves=2).time(1) == pytest.approx(0.8)
    assert [evaluations_of(0.3, w) for w in (0.0, 1.0, 3.0, 7.0, 9.0)] == [3, 3, 6, 12, 12]
    assert [evaluations_of(t, 3.0) for t in (0.59, 0.6)] == [6, 3]


def test_the_unconditional_network_is_not_guided():
    """w = 0 asks it alone, and its answer is a posterior mean."""
    model = Denoiser(
        lambda x, t, c: x * c[:, None], Linear(), conditioning={"c": torch.ones(1)},
        unconditional={"c": torch.zeros(1)}, guidance_scale=0.0,
    )  # fmt: skip
    assert refine(model, slope, shape=(1,), moves=1, returned="last", seed=0).biases == ()


@pytest.mark.parametrize(("given", "calls"), [({}, 7 + 6), ({"init": torch.zeros(1)}, 6)])
def test_a_bar_knows_how_long_it_will_be(given, calls, monkeypatch):
    asked = []
    real = loop.progress_bar

    def bar(total, *rest):
        asked.append(total)
        return real(total, *rest)

    monkeypatch.setattr(loop, "progress_bar", bar)
    result = run(moves=2, move_steps=3, steps=7, dtype=torch.float32, **given)
    assert asked == [calls] and result.network_evaluations == 4 * calls


def test_settings_that_do_not_go_together_are_refused():
    with pytest.raises(InvalidArgument, match="lists 2 shares of lambda for 3 moves"):
        Refine(moves=3, schedule=(0.5, 1.0))
    assert Refine(rescore=1000).rescore == 1000
    with pytest.raises(InvalidArgument, match="rescore must be at most 1,000"):
        Refine(rescore=1001)
    with pytest.raises(InvalidArgument, match=r"move_times must lie in \(0, 1\)"):
        Refine(move_times=1.0)


@pytest.mark.parametrize(
    "text",
    [
        "refine moves=20 move_times=ramp:0.2:last=0.6",
        "refine move_times=adaptive:0.5 move_steps=3,4",
        "refine schedule=adaptive:0.7 returned=last until=2.5",
    ],
)
def test_its_text_and_its_json_say_the_same(text):
    method = Refine.parse(text)
    assert str(method) == text
    assert Refine.from_json(json.loads(json.dumps(method.as_json()))) == method


# ---------------------------------------------------------------------------------- the same bits


def test_a_particle_is_the_same_in_any_batch():
    """Noise by particle, acceptance by particle: without exchange a chain knows of no other."""
    every = run(populations=6, particles=2, moves=4, ess_threshold=0.0)
    alone = run(populations=1, particles=2, moves=4, ess_threshold=0.0)
    assert torch.equal(every.samples[:1], alone.samples)


@pytest.mark.parametrize(
    "given", [{}, pytest.param({"init": torch.full((1,), 0.5)}, marks=pytest.mark.slow)]
)
def test_killed_after_any_move_it_goes_on_to_the_same_bits(tmp_path, given):
    class Killed(Exception):
        pass

    options = dict(
        populations=3, moves=5, move_times="adaptive", schedule=None, returned="best",
        ess_threshold=0.9, scale=3.0, **given,
    )  # fmt: skip
    whole = run(**options)
    for last in range(5):

        def stop(step, last=last):
            if step.boundary.index == last:
                raise Killed

        folder = tmp_path / str(last)
        with pytest.raises(Killed):
            run(record=RunFolder(folder), on_boundary=stop, **options)
        again = run(record=(record := RunFolder(folder)), **options)
        record.finish(again)
        for name in ("samples", "rewards", "log_weights", "ancestry", "acceptance", "move_times"):
            assert torch.equal(getattr(again, name), getattr(whole, name)), name
        assert again.costs == whole.costs
        assert again.biases == whole.biases
        found = RunFolder(folder).result()
        assert type(found) is type(whole) and torch.equal(found.samples, whole.samples)


def test_it_starts_from_what_another_method_returned():
    first = steer(
        denoiser(), slope, shape=(1,), particles=4, populations=2, seed=0, dtype=torch.float64
    )
    result = run(init=first.samples, populations=2, moves=3, returned="best")
    assert (result.rewards >= first.rewards).all()


@pytest.mark.parametrize("left", [1, 2, 5, 6])
def test_moves_fill_what_is_left(left):
    assert Refine(move_steps=1).filling(4 + left, 4).moves == left
    assert Refine(move_steps=2).filling(4 + left, 4).moves == max(1, left // 2)
