"""Refinement's numbers, one at a time, against values written out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from test_evidence import hard
from test_refine import guided, run, slope

from glass_flows import Refine, refine
from glass_flows.errors import InvalidArgument
from glass_flows.noise import ACCEPTANCE, KeyedNoise
from glass_flows.paths import Linear
from glass_flows.steering import Acceptance, Adaptive, Ramp, loop
from glass_flows.steering.refinement import time_on
from statistics_rules import PATHS


def equal(z):
    return torch.zeros(len(z), dtype=z.dtype)


def at(*places):
    return torch.tensor(places, dtype=torch.float64)[:, None]


def recorded(*given, **options):
    """(the result, its steps)"""
    steps = []
    return run(*given, on_boundary=steps.append, **options), steps


# --- settings -----------------------------------------------------------------------------------


def test_what_is_not_said():
    assert (Ramp(), Acceptance()) == (Ramp(0.1, 0.8), Acceptance(0.4, 0.3))
    said = {"moves": 6, "move_times": Ramp(0.1, 0.8), "move_steps": None, "move_guidance": None,
            "schedule": None, "resampling": "systematic", "ess_threshold": 0.5,
            "returned": "best", "until": None, "rescore": 0, "degenerate": "error"}  # fmt: skip
    method = Refine()
    assert {name: getattr(method, name) for name in said} == said
    optional = ("move_steps", "move_guidance", "schedule", "until")
    assert (
        Refine.parse("refine scale=auto " + " ".join(f"{name}=none" for name in optional)) == method
    )
    assert (Refine(moves=0).moves, Refine(rescore=0).rescore) == (0, 0)


@pytest.mark.parametrize("time", [0.0, 1.0, -0.5, 1.5])
def test_times_of_moves_are_inside(time):
    for given in (time, (0.5, time), f"ramp:{time}:last=0.5", f"adaptive:0.5:first={time}"):
        with pytest.raises(InvalidArgument, match=r"must lie in \(0, 1\)"):
            Refine(move_times=given)


def test_the_guidance_of_moves():
    """1 + share (w - 1), and w itself where it is none."""
    for share, w, moved in (
        (None, 5.0, 3.0), (None, 1.5, 1.25), (None, 1.0, 1.0), (None, 0.25, 0.25),
        (0.25, 3.0, 1.5), (0.0, 5.0, 1.0), (0.0, 0.5, 0.5), (1.0, 5.0, 5.0),
    ):  # fmt: skip
        assert Refine(move_guidance=share).weaker(w) == moved
    method = Refine(move_guidance=0.0, returned="last")
    (bias,) = method.biases(guided(1.5))
    assert bias.startswith("moves are without the model's classifier-free guidance")


def test_a_pilot_fixes_the_mean_share_of_its_populations():
    adaptive = {"moves": 3, "schedule": Adaptive(0.7), "scale": 4.0, "populations": 2}
    pilot = run(move_times=Acceptance(0.4), **adaptive)
    method = Refine(4, 4.0, schedule=Adaptive(0.7), until=9.0).fixed(pilot)
    one, two = pilot.shares.T.tolist()
    assert one[:3] != two[:3] and one[3] == two[3] == 1.0
    assert method.schedule == pytest.approx([(a + b) / 2 for a, b in zip(one[:3], two[:3])])
    assert (method.moves, method.until) == (3, None)


# --- a run by hand ------------------------------------------------------------------------------


@pytest.mark.parametrize("returned", ["best", "last"])
def test_a_run_by_hand(returned):
    """From what was proposed: who is accepted, who weighs what, who goes on, and the evidence."""
    given = {"moves": 4, "populations": 3, "scale": 4.0, "ess_threshold": 0.8}
    result, steps = recorded(returned=returned, **given)
    noise, shares = KeyedNoise(0), [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]  # λ rises linearly, and ends
    weights, evidence = torch.zeros(3, 4, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    rewards = best = steps[0].proposed
    for k, step in enumerate(steps):
        if k:
            streams = [np.random.Generator(noise.bits(ACCEPTANCE, k, p)) for p in range(3)]
            uniform = torch.tensor(np.stack([stream.random(4) for stream in streams]))
            accepted = uniform < (4.0 * shares[k] * (step.proposed - rewards)).exp()
            assert torch.equal(step.accepted, accepted)
            rewards = torch.where(accepted, step.proposed, rewards)
        best = torch.maximum(best, rewards)
        assert k == 4 or torch.equal(step.rewards, rewards)
        weights = weights + 4.0 * (shares[k + 1] - shares[k]) * rewards
        mean = weights.logsumexp(1) - math.log(4.0)
        torch.testing.assert_close(step.log_evidence, evidence + mean)
        few = weights.softmax(1).square().sum(1).reciprocal()
        torch.testing.assert_close(step.ess, few)
        assert torch.equal(step.resampled, (few <= 0.8 * 4) & (k < 4))
        evidence = torch.where(step.resampled, evidence + mean, evidence)
        weights = torch.where(step.resampled[:, None], 0.0, weights)
        torch.testing.assert_close(step.log_weights.values, weights)
        rewards, best = (held.gather(1, step.ancestors) for held in (rewards, best))
        assert torch.equal(step.best_rewards, best)
        assert step.share.tolist() == [shares[k + 1]] * 3
    assert sum(int(step.resampled.sum()) for step in steps) >= 3
    assert [step.time for step in steps] == pytest.approx([0.1, 1 / 3, 17 / 30, 0.8, 1.0])
    assert torch.equal(result.rewards, best if returned == "best" else rewards)
    assert torch.equal(result.samples, result.rewards[..., None])  # the reward is the place
    assert result.ancestry.shape == (4, 3, 4) and result.shares.shape == result.ess.shape == (5, 3)
    assert torch.equal(
        result.acceptance, torch.stack([step.accepted.double().mean(1) for step in steps[1:]])
    )
    assert result.move_times.tolist() == [step.time for step in steps[:-1]]


def test_of_equals_the_first_is_the_best():
    first = run(equal, moves=0).samples
    assert torch.equal(run(equal, moves=3, returned="best", ess_threshold=0.0).samples, first)
    assert not (run(equal, moves=3, ess_threshold=0.0).samples == first).any()


def test_it_ends_at_the_reward_itself():
    _, steps = recorded(equal, moves=3, until=0.0)
    assert len(steps) == 1 and steps[0].boundary.final
    assert len(run(equal, moves=3, until=1e-9).ess) == 4


def test_equal_weights_are_resampled_at_a_threshold_of_one_and_never_at_the_end():
    _, steps = recorded(equal, moves=2, ess_threshold=1.0)
    assert [bool(step.resampled) for step in steps] == [True, True, False]
    _, steps = recorded(moves=2, ess_threshold=0.0, scale=50.0)
    assert [bool(step.resampled) for step in steps] == [False] * 3


def test_what_alone_has_weight_is_all_that_goes_on():
    _, steps = recorded(hard, moves=1, init=at(-1.0, -2.0, 1.0, -3.0))
    assert float(steps[0].ess) == 1.0
    assert steps[0].ancestors.tolist() == [[2, 2, 2, 2]]


def test_between_excluded_samples_chains_move_and_none_goes_on_more_than_once():
    result, steps = recorded(
        lambda z: equal(z) - math.inf, moves=2, init=at(-1.0, 0.0, 1.0, 2.0), degenerate="carry"
    )
    assert result.acceptance.tolist() == [[1.0], [1.0]]
    assert [step.ess.tolist() for step in steps] == [[0.0]] * 3
    assert not any(step.resampled.any() for step in steps)


# --- times of moves -----------------------------------------------------------------------------


def test_the_time_moves_by_what_was_accepted():
    """log α/σ by 2 (rate - accepted)/√k after move k."""
    result = run(moves=5, move_times=Acceptance(0.4, 0.3), scale=4.0, schedule="constant")
    assert float(result.move_times[0]) == 0.3
    level = torch.logit(result.move_times)
    k = torch.arange(1, 5, dtype=torch.float64)
    moved = 2.0 * (0.4 - result.acceptance[:4, 0]) / k.sqrt()
    assert len(set(result.acceptance[:4, 0].tolist())) > 1
    torch.testing.assert_close(level.diff(), moved)


def test_adaptive_times_stay_from_2_to_98_hundredths():
    all_of_them = run(equal, moves=2, move_times=Acceptance(0.4, 0.03))
    assert all_of_them.move_times.tolist() == [0.03, 0.02]
    none = run(
        lambda z: -1e9 * slope(z).abs(), moves=2, init=at(0.0, 0.0, 0.0, 0.0),
        move_times=Acceptance(0.9, 0.97),
    )  # fmt: skip
    assert none.acceptance.tolist() == [[0.0], [0.0]]
    assert none.move_times.tolist() == [0.97, 0.98]


def test_times_of_discrete_models_are_the_nearest_trained_ones():
    path = PATHS["discrete"]
    trained = path.trained_times
    low, high = path.amplitude(trained[0]), path.amplitude(trained[-1])
    for k in (1, len(trained) // 3, len(trained) - 2):
        for off in (-0.3, 0.0, 0.3):  # of the way to the next
            t = trained[k] + off * (trained[k + 1] - trained[k])
            a = path.amplitude(t)
            assert time_on(path, a / (1.0 + a)) == trained[k]
    assert time_on(path, 0.5 * low / (1.0 + low)) == trained[0]
    assert time_on(path, (1.0 + high) / (2.0 + high)) == trained[-1]
    assert time_on(PATHS["cosine"], 0.5) == pytest.approx(0.5)  # α = σ
    assert time_on(Linear(), 0.2) == pytest.approx(0.2)


def test_moves_that_last_are_all_that_do():
    """Of 3 evaluations each, from 0 left to 7."""
    found = [Refine(move_times=0.7).filling(10 + left, 10).moves for left in range(-1, 8)]
    assert found == [1, 1, 1, 1, 1, 1, 1, 2, 2]
    assert [Refine(move_steps=1).filling(left, 0).moves for left in (1, 2, 5)] == [1, 2, 5]


def test_a_solver_of_ones_own_draws_its_moves():
    """That of the Gaussian's own spread is exact with two evaluations; the default one is not."""
    options = {"moves": 1, "scale": 0.0, "init": at(0.2, 0.9, -0.4, 1.3), "move_times": 0.5}
    one, two = (run(move_steps=steps, **options).samples for steps in (2, 40))
    assert not torch.equal(one, two)
    unplanned = run(move_steps=2, solver="default", **options).samples
    assert not torch.allclose(one, unplanned, atol=1e-4)


# --- beside it ----------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["default", "default:guidance=1", "first-order"])
def test_a_bar_knows_of_guidance(solver, monkeypatch):
    """Half of w = 5 is 3, by which a long move takes 6; whatever the solver was told of it."""
    asked = []
    bar = loop.progress_bar
    monkeypatch.setattr(loop, "progress_bar", lambda n, *rest: asked.append(n) or bar(n, *rest))
    result = refine(
        guided(5.0), slope, shape=(1,), seed=0, moves=2, move_times=0.3, scale=1.0, particles=3,
        solver=solver, steps=4,
    )  # fmt: skip
    assert asked == [4 + 6 + 6] and result.network_evaluations == 3 * 2 * 16


def test_moves_at_half_the_guidance_are_those_of_a_model_under_it():
    one = {"shape": (1,), "seed": 0, "moves": 2, "scale": 1.0, "init": at(0.2, 0.9, -0.4, 1.3),
           "particles": 4, "move_times": 0.3, "move_steps": 4}  # fmt: skip
    half, whole = (
        refine(guided(w), slope, move_guidance=share, **one).samples
        for w, share in ((5.0, 0.5), (3.0, 1.0))
    )
    assert torch.equal(half, whole)


@pytest.mark.parametrize("returned", ["best", "last"])
def test_held_out_rewards_see_what_the_reward_sees(returned):
    """The proposals, so that nothing is decoded twice; at the end the best, if it is returned."""
    seen, held = [], []
    result, steps = recorded(
        lambda z: seen.append(z) or slope(z), moves=3, scale=20.0, ess_threshold=0.0,
        returned=returned, also={"held": lambda z: held.append(z) or slope(z)},
    )  # fmt: skip
    assert len(seen) == len(held) == 4 and not steps[1].accepted.all()
    assert not steps[3].accepted.all()
    ends = result.samples.flatten(0, 1) if returned == "best" else seen[3]
    assert all(torch.equal(z, mine) for z, mine in zip(held, [*seen[:3], ends]))


def test_its_chains_have_weights():
    assert Refine.weighted and run(moves=1).log_weights.shape == (1, 4)
