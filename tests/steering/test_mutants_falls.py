"""Over-optimisation by rungs that are made by hand: what `tools/mutants.py` asks first."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import NormalDist

import pytest
import torch

from glass_flows import best_of, steer
from glass_flows.paths import Linear
from glass_flows.steering import over_optimised
from glass_flows.steering.held_out import Beside, held_out
from glass_flows.steering.overoptimisation import Rung, falls
from glass_flows.worlds import GaussianMixture

DENOISER = GaussianMixture(means=torch.zeros(1, 2).double(), std=2.0).denoiser(Linear())
SMALL = {"shape": (2,), "particles": 6, "seed": 3, "dtype": torch.float64, "progress": False}


def real(rows):
    return torch.tensor(rows, dtype=torch.float64)


def rung(scale, also, roots, weights, rewards=None):
    rewards = torch.full_like(also["a"], scale) if rewards is None else real(rewards)
    return Rung(scale, also, rewards, real(weights), torch.tensor(roots))


# Two populations of three, with weights and copies, at three λ; "b" never falls.
DRAWS = torch.randn(3, 2, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
ROOTS = ([[0, 1, 2], [0, 0, 1]], [[0, 1, 3], [2, 1, 2]], [[2, 2, 5], [1, 0, 3]])
WEIGHTS = (
    [[0.2, 0.3, 0.5], [0.25, 0.25, 0.5]],
    [[0.1, 0.6, 0.3], [0.5, 0.25, 0.25]],
    [[0.4, 0.2, 0.4], [0.3, 0.3, 0.4]],
)


def plainly(low, high):
    """T of the module's docstring, in loops."""
    fall, variance = 0.0, 0.0
    for p in range(2):
        n, mean, spread = [], [], []
        for one in (low, high):
            w, g, h = (x[p].tolist() for x in (one.weights, one.roots, one.also["a"]))
            n.append(1 / sum(sum(w[i] for i in range(3) if g[i] == k) ** 2 for k in set(g)))
            mean.append(sum(a * b for a, b in zip(w, h)))
            spread.append(sum(a * (b - mean[-1]) ** 2 for a, b in zip(w, h)))
        whole = sum(a * b for a, b in zip(n, mean)) / sum(n)
        squares = sum(k * (v + (m - whole) ** 2) for k, v, m in zip(n, spread, mean))
        fall += mean[0] - mean[1]
        variance += squares / (sum(n) - 1) * (1 / n[0] + 1 / n[1])
    return fall / math.sqrt(variance)


@pytest.mark.parametrize("size", [1e-9, 1.0, 1e9])
def test_a_fall_is_told_at_the_level_of_all_comparisons(size):
    """Three λ and two held-out rewards are six comparisons; T grows with the distance."""

    def laddered(d):
        high = [1.0, 1.0 + 1e-3, 1.0 - d]  # the first two of one height, the third lower
        rungs = []
        for k in range(3):
            values = size * (DRAWS[k] + high[k])
            rungs.append(rung(float(k), {"a": values, "b": 0 * values}, ROOTS[k], WEIGHTS[k]))
        return rungs

    z = NormalDist().inv_cdf(1 - 0.05 / 6)
    low, high = 0.0, 1e3
    for _ in range(80):
        middle = (low + high) / 2
        first, second, third = laddered(middle)
        certain = max(plainly(first, third), plainly(second, third)) > z
        low, high = (low, middle) if certain else (middle, high)
    assert 0.1 < low < 100.0
    assert falls(laddered(low * (1 - 1e-9))) == ()
    rungs = laddered(high * (1 + 1e-9))
    (told,) = falls(rungs)
    means = [float((one.weights * one.also["a"]).sum(1).mean()) for one in rungs]
    best = 0 if means[0] > means[1] else 1
    assert (told.name, told.beyond, told.seen) == ("a", best, 2.0)
    assert told.held_out == pytest.approx((means[best], means[2]))
    assert told.rewards == pytest.approx((best, 2.0))
    assert str(told).startswith(f"over-optimised beyond λ = {best}: there the held-out 'a' is ")
    assert replace(rungs[1], move=4).place == "λ = 1, move 4"
    assert falls(rungs[:1]) == falls([]) == ()


def equal(scale, value, rewards):
    values = torch.full((1, 8), value, dtype=torch.float64)
    return rung(scale, {"a": values}, [[*range(8)]], [[1 / 8] * 8], [[rewards] * 8])


def test_means_that_differ_by_rounding_do_not_fall():
    for value in (1.0, -1.0, 1e-12):
        low = equal(0.0, value, 1.0)
        assert falls([low, equal(1.0, value - 1e-16 * abs(value), 2.0)]) == ()
        assert falls([low, equal(1.0, value - 1e-10 * abs(value), 2.0)]) == ()
        assert len(falls([low, equal(1.0, value - 1e-8 * abs(value), 2.0)])) == 1
    for rewards in (0.0, 1.0):  # the one that steers must rise
        assert falls([equal(0.0, 5.0, 1.0), equal(1.0, 3.0, rewards)]) == ()
    assert falls([equal(0.0, 0.0, 1.0), equal(1.0, 0.0, 2.0)]) == ()


def test_particles_from_one_are_one_draw():
    weights = [[0.5, 0.25, 0.25]]
    for roots, draws in (([[0, 4, 2]], 8 / 3), ([[3, 3, 0]], 1.6), ([[1, 1, 1]], 1.0)):
        assert rung(1.0, {"a": real([[0.0] * 3])}, roots, weights).draws.tolist() == [draws]


def first(z):
    return z[:, 0]


def test_plain_samples_at_a_lambda_of_zero_have_no_weights():
    drawn = best_of(DENOISER, first, scale=2.0, also={"a": first}, **SMALL)
    plain, tilted = Rung.of(0.0, drawn), Rung.of(0.5, drawn)
    assert (plain.weights == 1 / 6).all()
    assert torch.equal(tilted.weights, torch.softmax(2.0 * drawn.rewards, 1))
    assert torch.equal(tilted.roots, torch.arange(6)[None])
    moved = replace(drawn, ancestry=torch.tensor([[[1, 1, 1, 2, 2, 0]]]))
    assert torch.equal(Rung.of(2.0, moved).roots, moved.ancestry[0])


def test_particles_that_a_value_has_chosen_are_weighted_at_a_lambda_of_zero_too():
    """The law is p itself, and they were chosen by another; what is no run has its own weights."""
    own = {"value": lambda x, t, D: D[:, 0], "transitions": 3, "steps": 1}
    found = steer(DENOISER, first, scale=0.0, ess_threshold=1.0, **SMALL, **own)
    assert found.log_weights.std() > 0.1
    for one in (found, replace(found, strength=None)):
        assert torch.equal(Rung.of(0.0, one).weights, torch.softmax(found.log_weights, 1))


def test_two_results_are_compared():
    drawn = best_of(
        DENOISER, first, scale=9.0, also={"a": lambda z: -z[:, 0]}, **{**SMALL, "particles": 24}
    )
    (told,) = over_optimised({9.0: drawn, 0.0: drawn})
    assert (told.beyond, told.seen) == (0.0, 9.0)


# --- held-out rewards -----------------------------------------------------------------------------


def test_without_shares_all_weigh_the_same():
    rewards = torch.zeros(2, 4)
    found = Beside.of({}, rewards, None)
    assert found.weights.tolist() == [[0.25] * 4] * 2
    assert {found.weights.dtype, found.rewards.dtype} == {torch.float64}
    assert Beside.of({}, rewards, rewards).weights is rewards
    assert held_out(None) == {}
