"""The student of the digits network answers with the end of its teacher's ODE."""

import pytest

from glass_flows import Sampler, sample
from glass_flows.errors import InvalidArgument
from glass_flows.jobs.models import digits_denoiser, resolve
from glass_flows.research.distil_digits import _drawn, distil_digits
from glass_flows.worlds.digits import CLASSES, load_digits_network


@pytest.mark.slow
def test_trajectories_are_those_of_the_teachers_ode():
    states, labels = _drawn(load_digits_network(), 64, 3, progress=False)
    assert states.shape == (17, 64, 1, 8, 8)
    assert 0 < (labels == CLASSES).sum() < 64  # some are unconditional
    denoiser = digits_denoiser().condition(label=labels)
    ends = sample(denoiser, states[0], Sampler.ode(64), progress=False)
    apart = (states[-1] - ends).square().mean((1, 2, 3)).sqrt()
    assert apart.median() < 0.02 * ends.std()  # some lie on the border between two digits


@pytest.mark.slow
def test_a_student_learns_the_end_of_the_ode_and_is_a_model_by_name(tmp_path):
    small = {"batch": 128, "trajectories": 1_000, "progress": False, "checkpoint_every": 100}
    distil_digits(tmp_path, times=4, steps=200, **small)
    states, labels = _drawn(load_digits_network(), 400, 9, progress=False)  # others than trained on
    errors = []
    for denoiser in (digits_denoiser(), resolve(f"digits:{tmp_path}").denoiser):
        found = denoiser.condition(label=labels)(states[0], 0.0)
        errors.append((found - states[-1]).square().mean())
    assert errors[1] < 0.75 * errors[0]


@pytest.mark.parametrize("times", [0, 3, 32])
def test_times_that_the_teachers_ode_has_not(tmp_path, times):
    with pytest.raises(InvalidArgument, match="times must"):
        distil_digits(tmp_path, times=times, progress=False)
