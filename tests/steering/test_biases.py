"""A result names every reason for which its particles miss their law, and no other."""

from __future__ import annotations

import math

import pytest
import torch

from cases import fast
from glass_flows import steer
from glass_flows.paths import Linear
from glass_flows.runs import RunFolder
from glass_flows.steering import POTENTIALS
from glass_flows.worlds import GaussianMixture

MEANS = torch.tensor([[-1.0, 0.0], [1.0, 0.5]], dtype=torch.float64)
DENOISER = GaussianMixture(MEANS, 0.5).denoiser(Linear())
GIVEN = {"shape": (2,), "particles": 32, "transitions": 4, "steps": 3, "rho": 0.2, "seed": 3}
GIVEN |= {"scale": 1.0, "dtype": torch.float64, "populations": 2}


def hard(z):
    """Excludes what lies to the left."""
    return torch.where(z[:, 0] > 0.0, 0.0, -math.inf)


def soft(z):
    return hard(z).clamp(min=-5.0)


@pytest.mark.parametrize(
    "potential",
    fast(["difference", "terminal"], [p for p in POTENTIALS if not p.startswith("fkd-")]),
)
def test_particles_that_an_infinite_reward_drops_on_the_way_are_named(potential):
    given = {**GIVEN, "potential": potential, "ess_threshold": 0.9}
    biases = steer(DENOISER, hard, **given).biases
    if potential == "terminal":  # it weighs nobody before the end
        assert biases == ()
    else:
        (reason,) = biases
        assert "-inf" in reason and "finite floor" in reason and "ess_threshold=0" in reason
    assert steer(DENOISER, soft, **given).biases == ()
    assert steer(DENOISER, hard, **{**given, "ess_threshold": 0.0}).biases == ()


@pytest.mark.usefixtures("one_stream")
def test_the_remedies_keep_the_probability_of_what_is_allowed_and_the_other_does_not():
    """E[Z] = P(left of 0 is not): 300 populations, 5 standard errors; alone 1e-6 of false alarm."""
    share = float((GaussianMixture(MEANS, 0.5).sample(200_000, seed=1)[:, 0] > 0).double().mean())
    found = {}
    for threshold in (0.0, 1.0):
        given = {**GIVEN, "ess_threshold": threshold, "populations": 300, "particles": 16}
        evidence = steer(DENOISER, hard, **given).log_evidence.exp()
        error = float(evidence.std()) / 300**0.5
        found[threshold] = (float(evidence.mean()) - share) / error
    assert abs(found[0.0]) < 5
    assert abs(found[1.0]) > 8


def test_it_is_still_said_by_a_run_that_was_stopped_after_the_drop(tmp_path):
    class Stop(Exception):
        pass

    def stop(step):
        if step.boundary.index == 3:
            raise Stop

    given = {**GIVEN, "ess_threshold": 0.9, "boundaries": [1, 2]}
    with pytest.raises(Stop):
        steer(DENOISER, hard, record=RunFolder(tmp_path / "run"), on_boundary=stop, **given)
    folder = RunFolder(tmp_path / "run")
    resumed = steer(DENOISER, hard, record=folder, **given)
    folder.finish(resumed)
    assert resumed.biases == steer(DENOISER, hard, **given).biases != ()
    assert folder.result().biases == resumed.biases
