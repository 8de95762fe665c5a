"""Steering: weights, resampling, evidence and the tilted law on exact mixtures."""

from __future__ import annotations

import math

import pytest
import torch

from glass_flows import Denoiser
from glass_flows.errors import (
    DegenerateWeights,
    InvalidArgument,
    NonFinite,
    PlanError,
    ShapeError,
    TimeError,
    UnknownName,
)
from glass_flows.paths import Linear
from glass_flows.plans import Paper
from glass_flows.rewards import ClassReward
from glass_flows.steering import LogWeights, Steering, best_of, iterate_steering, steer
from glass_flows.steering.resampling import RESAMPLERS
from glass_flows.worlds import GaussianMixture

MIXTURE = GaussianMixture(
    torch.tensor([[-1.0, 0.0], [1.0, 0.5], [0.3, -1.2]], dtype=torch.float64), 0.5
)
DENOISER = MIXTURE.denoiser(Linear())
SLOPE = torch.tensor([0.8, -0.4], dtype=torch.float64)
CURVATURE = 0.3
TILTED, LOG_EVIDENCE = MIXTURE.tilted(SLOPE, CURVATURE)


def reward(z):
    return z @ SLOPE - 0.5 * CURVATURE * z.square().sum(1)


def steered(**options):
    settings = {
        "shape": (2,),
        "particles": 8,
        "scale": 1.0,
        "transitions": 3,
        "steps": 6,
        "rho": 0.4,
        "dtype": torch.float64,
        "seed": 1,
    }
    return steer(DENOISER, reward, **{**settings, **options})


# --- weights and resampling -------------------------------------------------------------------


def test_log_weights_survive_any_size():
    values = torch.tensor([[1000.0, 999.0, -math.inf, 998.0]], dtype=torch.float64)
    weights = LogWeights.uniform(1, 4).times(values, "here")
    p = torch.tensor([[1.0, math.exp(-1), 0.0, math.exp(-2)]], dtype=torch.float64)
    torch.testing.assert_close(weights.normalized(), p / p.sum())
    torch.testing.assert_close(weights.ess(), p.sum(1) ** 2 / p.square().sum(1))
    torch.testing.assert_close(weights.log_mean(), 1000 + torch.log(p.mean(1)))


def test_weights_multiply_and_stay_immutable():
    one = LogWeights.uniform(1, 2)
    two = one.times(torch.tensor([[1.0, 2.0]]), "a").times(torch.tensor([[0.5, -1.0]]), "b")
    assert one.values.tolist() == [[0.0, 0.0]]
    assert two.values.tolist() == [[1.5, 1.0]]


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ([[0.0, 1.0], [math.nan, 0.0]], r"particle 0 \(population 1\) became nan at boundary 3"),
        ([[0.0, math.inf], [0.0, 0.0]], r"particle 1 \(population 0\) became inf"),
        ([[0.0, 0.0], [-math.inf, -math.inf]], r"all 2 particles of population 1 have weight zero"),
    ],
)
def test_degenerate_weights_stop_with_their_place(values, match):
    with pytest.raises(DegenerateWeights, match=match):
        LogWeights.uniform(2, 2).times(torch.tensor(values), "boundary 3")


# --- the algorithm ----------------------------------------------------------------------------


@pytest.mark.usefixtures("one_stream")
@pytest.mark.parametrize(
    ("threshold", "resampling"),
    [
        (0.0, "systematic"),
        (0.6, "systematic"),
        *(pytest.param(1.0, name, marks=pytest.mark.slow) for name in sorted(RESAMPLERS)),
    ],
)
def test_the_weighted_particles_target_the_tilted_law(threshold, resampling):
    """Evidence and tilted moments, over 1,500 populations of 8 particles.

    The evidence estimate is unbiased for any N, and so is the weighted sum of f over particles for
    E[f exp(r)]: both are compared with the closed form at 4.5 standard errors (family-wise false
    alarm of all lines and parameters below 1e-3 by Bonferroni). The solver's own error at 3 x 6
    evaluations is far below the standard error of about 1 %.
    """
    result = steered(populations=1500, ess_threshold=threshold, resampling=resampling, seed=5)
    mass = torch.exp(result.log_evidence - LOG_EVIDENCE)  # mean 1
    share = torch.softmax(result.log_weights, 1)
    z = result.samples
    moments = torch.cat([z, z.square(), z.prod(2, keepdim=True)], 2)
    second = TILTED.covariance() + TILTED.mean().outer(TILTED.mean())
    exact = torch.cat([TILTED.mean(), second.diagonal(), second[0, 1:]])
    centred = mass[:, None] * ((share[:, :, None] * moments).sum(1) - exact)
    for estimate, expected in [(mass, 1.0), *((c, 0.0) for c in centred.T)]:
        error = estimate.std() / len(estimate) ** 0.5
        assert abs(estimate.mean() - expected) < 4.5 * error
        assert error < 0.05
    torch.testing.assert_close(result.rewards.flatten(), reward(z.view(-1, 2)))


def test_never_resampling_is_importance_sampling():
    result = steered(ess_threshold=0.0, populations=3)
    assert (result.ancestry == torch.arange(8)).all()
    torch.testing.assert_close(result.log_weights, result.rewards)
    torch.testing.assert_close(
        result.log_evidence, torch.logsumexp(result.rewards, 1) - math.log(8)
    )


def test_always_resampling_does_so_where_noise_follows():
    result = steered(ess_threshold=1.0, populations=3)
    moved = (result.ancestry != torch.arange(8)).any(2).any(1)
    assert moved.tolist() == [False, True, True]  # the first transition draws no noise
    assert result.ess.shape == (4, 3)
    assert ((result.ess >= 1) & (result.ess <= 8 + 1e-9)).all()


def test_a_weight_is_carried_over_a_boundary_without_resampling():
    """Along every path the product of the factors is exp(λ r(x_1)): nothing is lost or doubled.

    With resampling at one boundary only (threshold met by one population), the evidence is the
    product of the mean weight there and the mean of the rest.
    """
    settings = Steering(8, 2.0, ess_threshold=0.7, boundaries=1)
    steps = list(
        iterate_steering(
            _table(), DENOISER, reward, settings, shape=(2,), populations=4, seed=3,
            dtype=torch.float64,
        )
    )  # fmt: skip
    value, logw, log_z = 0.0, torch.zeros(4, 8), torch.zeros(4)
    for step in steps:
        logw = logw + 2.0 * step.rewards - value
        value = 2.0 * step.rewards
        torch.testing.assert_close(step.ess, LogWeights(logw.double()).ess())
        rows = (step.ancestors != torch.arange(8)).any(1)
        value = value.gather(1, step.ancestors)
        mean = torch.logsumexp(logw, 1) - math.log(8)
        log_z = torch.where(rows, log_z + mean, log_z)
        logw = torch.where(rows[:, None], 0.0, logw)
        torch.testing.assert_close(step.log_weights.values, logw.double())
        torch.testing.assert_close(
            step.log_evidence, (log_z + torch.logsumexp(logw, 1) - math.log(8)).double()
        )
    assert rows.sum() == 0
    assert any((s.ancestors != torch.arange(8)).any() for s in steps)


def _table():
    from glass_flows import plan

    return plan(Linear(), transitions=4, steps=3, rho=0.2)


def test_the_counts_are_the_true_ones():
    calls, asked = [], []

    def network(x, t, label):
        calls.append(len(x))
        return torch.zeros_like(x)

    def counting(z):
        asked.append(len(z))
        return z.sum(1)

    denoiser = Denoiser(
        network,
        Linear(),
        "sample",
        conditioning={"label": 1},
        unconditional={"label": 0},
        guidance_scale=2.0,
    )
    result = steer(
        denoiser,
        counting,
        shape=(2,),
        particles=3,
        populations=2,
        transitions=3,
        steps=4,
        rho=0.0,
        scale=1.0,
    )
    assert result.network_evaluations == sum(calls) == 2 * (2 * 3) * (3 * 4)  # no more than K M
    assert result.reward_evaluations == sum(asked) == 6 * 3  # two boundaries with noise, the end


def test_populations_are_independent_and_seeds_repeat():
    one = steered(populations=2, seed=8)
    again = steered(populations=2, seed=8)
    more = steered(populations=3, seed=8)
    assert torch.equal(one.samples, again.samples)
    torch.testing.assert_close(more.samples[:2], one.samples)
    assert not torch.equal(one.samples, steered(populations=2, seed=9).samples)


def test_best_of_n_returns_the_best():
    settings = {"shape": (2,), "particles": 5, "transitions": 1, "steps": 6, "populations": 4}
    result = best_of(DENOISER, reward, **settings, seed=2, dtype=torch.float64)
    assert (result.ancestry == torch.arange(5)).all()
    torch.testing.assert_close(reward(result.best), result.rewards.amax(1))


@pytest.mark.usefixtures("one_stream")
def test_a_reward_of_minus_infinity_excludes():
    """A hard constraint: without resampling the evidence is the probability of meeting it."""

    def inside(z):
        return torch.where(z[:, 0] > 0.2, 0.0, -math.inf)

    settings = {
        "shape": (2,),
        "particles": 400,
        "transitions": 3,
        "steps": 6,
        "rho": 0.2,
        "seed": 4,
    }
    share = (MIXTURE.sample(100_000, seed=1)[:, 0] > 0.2).double().mean()
    for threshold in (0.0, 0.5):
        result = steer(
            DENOISER, inside, ess_threshold=threshold, populations=5, scale=1.0, **settings
        )
        alive = result.log_weights > -math.inf
        assert (result.samples[..., 0][alive] > 0.2).all()
        if threshold == 0.0:  # 2,000 particles: 5 standard errors
            assert abs(result.log_evidence.exp().mean() - share) < 5 * (0.25 / 2000) ** 0.5
    unweighted = steer(DENOISER, inside, scale=0.0, **settings)
    assert (unweighted.log_weights == 0).all()


def test_a_boundary_that_resamples_nobody_may_lose_everybody():
    # At t = 0 every D is nearly the mean, which the constraint excludes; nobody is resampled there.
    def outside(z):
        return torch.where(z.norm(dim=1) > 0.5, 0.0, -math.inf)

    settings = {"shape": (2,), "particles": 20, "transitions": 1, "steps": 6, "rho": "ode"}
    result = steer(
        DENOISER, outside, boundaries=1, ess_threshold=0.0, scale=1.0, seed=0, **settings
    )
    assert (result.ess[0] == 0).all()
    assert (result.rewards == 0).any()


def test_steering_raises_the_reward():
    plain = steered(populations=50, scale=0.0, ess_threshold=0.0)
    tilted = steered(populations=50, scale=3.0)
    assert tilted.rewards.mean() > plain.rewards.mean() + 0.3
    assert (plain.log_weights == 0).all()


# --- bad input --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"particles": 0}, InvalidArgument, "particles must be an integer >= 1"),
        ({"populations": 1.5}, InvalidArgument, "populations"),
        ({"scale": -1.0}, InvalidArgument, "scale"),
        ({"scale": math.inf}, InvalidArgument, "scale"),
        ({"ess_threshold": 1.5}, InvalidArgument, r"ess_threshold must lie in \[0, 1\]"),
        ({"resampling": "systemic"}, UnknownName, "Did you mean 'systematic'"),
        ({"solver": Paper(s_range=(0.001, 0.999))}, PlanError, "no free value"),
        ({"times": [0.5, 0.75, 0.9, 1.0]}, TimeError, "start at noise"),
        ({"times": [0.0, 0.25, 0.5, 0.75]}, TimeError, "end at data"),
    ],
)
def test_bad_settings_are_named_before_anything_is_drawn(options, error, match):
    with pytest.raises(error, match=match):
        steered(**options)


@pytest.mark.parametrize(
    ("bad", "error", "match"),
    [
        (lambda z: z, ShapeError, r"shape \(8,\), one number per sample, got \(8, 2\)"),
        (lambda z: 1.0, ShapeError, "got float at boundary 1"),
        (lambda z: torch.where(torch.arange(8) == 3, math.nan, 0.0), NonFinite, r"particles \[3\]"),
        (lambda z: torch.full((8,), math.inf), NonFinite, "8 of 8"),
        (lambda z: torch.full((8,), -math.inf), DegenerateWeights, "the reward excludes them all"),
    ],
)
def test_bad_rewards_are_named(bad, error, match):
    with pytest.raises(error, match=match):
        steer(DENOISER, bad, shape=(2,), particles=8, scale=1.0, transitions=2, steps=2, rho=0.0)


def test_class_rewards():
    logits = torch.tensor([[0.0, 1.0, 2.0], [30.0, 0.0, 0.0]])
    values = ClassReward(lambda z: logits, 2)(torch.zeros(2, 1))
    assert values[0].item() == pytest.approx(2 - math.log(1 + math.e + math.e**2), rel=1e-6)
    assert values[1].item() == -12.0
    with pytest.raises(ShapeError, match="more than 3 classes"):
        ClassReward(lambda z: logits, 3)(torch.zeros(2, 1))
    with pytest.raises(InvalidArgument, match="label"):
        ClassReward(lambda z: logits, -1)
    with pytest.raises(InvalidArgument, match="floor"):
        ClassReward(lambda z: logits, 1, floor=0.0)
