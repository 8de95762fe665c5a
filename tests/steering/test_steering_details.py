"""Numbers inside steering that no law shows quickly: each decides a variance, not a mean."""

from __future__ import annotations

import math

import pytest
import torch

from glass_flows import Sampler, Steering, steer
from glass_flows.errors import DegenerateWeights
from glass_flows.paths import Linear
from glass_flows.steering import PosteriorValue, smc
from glass_flows.steering.population import Population, Run
from glass_flows.worlds import GaussianMixture

MEANS = torch.tensor([[-1.0, 0.0], [1.0, 0.5]], dtype=torch.float64)
DENOISER = GaussianMixture(MEANS, 0.5).denoiser(Linear())
SAMPLER = Sampler(4, 2, 0.3)
GIVEN = {"shape": (2,), "seed": 3, "dtype": torch.float64}


def bent(z):
    return -(z[:, 0] - 0.5).square() + 0.3 * z[:, 1]


def course(settings):
    table = SAMPLER.plan(Linear())
    population = Population.of(settings.particles, **GIVEN)
    return smc.Weighted(settings, Run(table, DENOISER, bent, settings, population))


def test_a_twist_promises_the_share_of_the_boundary_that_comes_next():
    """Not that of its own boundary: the value will be weighed with the share there."""
    begun = course(Steering(4, 2.0, schedule=[0.1, 0.2, 0.3, 0.4], twist=1.0, boundaries=[0, 2]))
    assert begun._share_ahead(0).item() == pytest.approx(0.3)
    assert begun._share_ahead(2).item() == 1.0  # the end
    begun = course(Steering(4, 2.0, schedule="linear", twist=1.0))
    assert [begun._share_ahead(k).item() for k in range(4)] == pytest.approx([0.25, 0.5, 0.75, 1])


def test_a_twist_under_an_adaptive_schedule_promises_what_was_chosen_so_far():
    begun = course(Steering(4, 2.0, schedule="adaptive", twist=1.0))
    begun.share = torch.full((1, 1), 0.37, dtype=torch.float64)
    assert [begun._share_ahead(k).item() for k in range(4)] == pytest.approx([0.37] * 3 + [1.0])


@pytest.mark.parametrize("value", ["free", PosteriorValue(3, 2), lambda x, t, D: 5.0 * x[:, 1]])
def test_the_prior_of_an_adaptive_twist_is_of_the_reward_at_d(value, monkeypatch):
    """The gradient is that of λ r at D, so it is set beside λ r at D, whatever the value V is."""
    seen = []

    def informative(gradient, D, at_D):
        seen.append((D, at_D))
        return torch.ones(len(at_D), 1, dtype=torch.float64)

    monkeypatch.setattr(smc, "informative", informative)
    steer(DENOISER, bent, particles=4, scale=2.0, twist=1.0, value=value, transitions=3, steps=2,
          populations=2, **GIVEN)  # fmt: skip
    assert seen
    for D, at_D in seen:
        torch.testing.assert_close(at_D, 2.0 * bent(D).view(2, 4))


@pytest.mark.parametrize("samples", [1, 4])
def test_the_posterior_value_of_a_constant_reward_is_that_constant(samples):
    """The mean of the draws' exp(λ r), and not their sum: log n is no part of a value."""

    def constant(z):
        return torch.full((len(z),), 0.7, dtype=z.dtype)

    steps = []
    steer(DENOISER, constant, particles=3, scale=2.0, value=PosteriorValue(samples, 2),
          transitions=3, steps=2, on_boundary=steps.append, **GIVEN)  # fmt: skip
    for step in steps[1:]:  # difference: the weight of a path is that of its last value
        torch.testing.assert_close(step.log_evidence, torch.tensor([1.4], dtype=torch.float64))


@pytest.mark.parametrize(
    ("potential", "expected"), [("difference", True), ("fkd-difference", False)]
)
def test_a_size_just_at_the_threshold(potential, expected):
    """The released code of arXiv 2501.06848 resamples below it, ours also at it."""
    kept = torch.tensor([0.0, 0.0, -math.inf, -math.inf], dtype=torch.float64)
    steps = []
    steer(DENOISER, bent, particles=4, potential=potential, value=lambda x, t, D: kept,
          boundaries=[1], ess_threshold=0.5, transitions=2, steps=2, rho=0.3,
          degenerate="carry", on_boundary=steps.append, **GIVEN)  # fmt: skip
    assert float(steps[1].ess) == 2.0
    assert bool(steps[1].resampled) == (potential == "difference")


def test_what_a_result_holds_of_every_boundary():
    result = steer(DENOISER, bent, particles=4, twist=1.0, populations=2, transitions=3, steps=2,
                   **GIVEN)  # fmt: skip
    assert result.samples.shape == (2, 4, 2)
    assert result.ancestry.shape == (3, 2, 4)
    assert result.ess.shape == result.shares.shape == (4, 2)
    assert result.twist_shares.shape == (3, 2)
    assert (result.twist_shares[1:] > 0.0).all()


def test_where_nobody_is_resampled_all_may_vanish_on_the_way():
    nobody = torch.full((4,), -math.inf)
    given = {"particles": 4, "value": lambda x, t, D: nobody, "boundaries": [1], **GIVEN}
    result = steer(DENOISER, bent, ess_threshold=0.0, transitions=2, steps=2, rho=0.3, **given)
    assert result.ess[1] == 0.0
    assert result.log_evidence.isfinite().all()
    with pytest.raises(DegenerateWeights):
        steer(DENOISER, bent, ess_threshold=0.5, transitions=2, steps=2, rho=0.3, **given)
