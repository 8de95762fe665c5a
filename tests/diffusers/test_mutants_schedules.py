"""What a diffusers scheduler says about its model, against the scheduler itself."""

from __future__ import annotations

import diffusers
import pytest
import torch

from glass_flows.diffusers import GlassScheduler
from glass_flows.diffusers.scheduler import LatentNoise, _key, _on_host
from glass_flows.diffusers.schedules import Schedule, _told_apart
from glass_flows.errors import InvalidArgument
from glass_flows.noise import KeyedNoise
from glass_flows.paths import DiscreteDiffusion, KnownTimes, Linear

STABLE = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "timestep_spacing": "leading",
}


def made(name, **config):
    """(the scheduler, what is read of it)"""
    scheduler = getattr(diffusers, name)(**config)
    return scheduler, Schedule.of({**scheduler.config, "_class_name": name})


@pytest.mark.parametrize(
    "name", ["FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"]
)
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_the_grid_of_a_flow(name, shift):
    _, found = made(name, shift=shift)
    assert isinstance(found.path, Linear)
    assert (found.prediction, found.scale, found.discrete) == ("reverse_velocity", 1000.0, False)
    euler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    euler.set_timesteps(5)
    expected = [1.0 - float(s) for s in euler.sigmas[:-1]] + [1.0]
    assert list(found.outer_times(5)) == pytest.approx(expected, abs=1e-12)
    euler.set_timesteps(sigmas=[0.9, 0.5])
    expected = [1.0 - float(s) for s in euler.sigmas[:-1]] + [1.0]
    assert list(found.outer_times(sigmas=[0.9, 0.5])) == pytest.approx(expected, abs=1e-12)
    assert found.outer_times(timesteps=[1000.0, 250.0]) == (0.0, 0.75, 1.0)


def test_a_flow_with_a_terminal_shift():
    scheduler, found = made("FlowMatchEulerDiscreteScheduler", shift_terminal=0.1)
    assert found.outer_times(1) == (0.0, 1.0)  # 0/0 in the scheduler itself
    assert found.outer_times(sigmas=[1.0]) == (0.0, 1.0)
    scheduler.set_timesteps(4)
    expected = [1.0 - float(s) for s in scheduler.sigmas[:-1]] + [1.0]
    assert list(found.outer_times(4)) == pytest.approx(expected, abs=1e-12)


def test_the_clock_of_a_flow():
    _, found = made("FlowMatchEulerDiscreteScheduler", num_train_timesteps=500)
    assert found.scale == 500.0
    assert found.model_time(found.path, 0.25) == 375.0
    assert found.model_time(found.path, 0.2501) == pytest.approx(374.95, rel=1e-12)
    assert found.time(375.0) == 0.25


def test_the_clock_of_a_flow_by_dpm_solver_is_whole_and_rounded_down():
    config = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    scheduler, found = made("DPMSolverMultistepScheduler", **config)
    assert isinstance(found.path, Linear)
    scheduler.set_timesteps(6)
    times = found.outer_times(6)
    told = [found.model_time(found.path, t) for t in times[:-1]]
    assert told == scheduler.timesteps.tolist()
    assert found.model_time(found.path, 1.0 - 0.4309995) == 430.0
    assert found.model_time(found.path, 1.0 - 0.431 + 1e-12) == 431.0  # what rounds under is meant


@pytest.mark.parametrize(
    "name",
    ["DDIMScheduler", "DDPMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"],
)
def test_the_grid_of_a_table_is_its_own(name):
    scheduler, found = made(name, **STABLE)
    assert isinstance(found.path, DiscreteDiffusion)
    assert (found.prediction, found.scale, found.discrete) == ("epsilon", 1000.0, True)
    scheduler.set_timesteps(7)
    expected = [(999.0 - float(k)) / 1000.0 for k in scheduler.timesteps]
    assert list(found.outer_times(7)) == pytest.approx([*expected, 1.0], abs=1e-9)
    for t, k in zip(found.outer_times(7), scheduler.timesteps):
        assert found.model_time(found.path, t) == pytest.approx(float(k), abs=1e-6)


@pytest.mark.parametrize("name", ["PNDMScheduler", "HeunDiscreteScheduler"])
def test_the_grid_of_others_is_that_of_ddim(name):
    _, found = made(name, **STABLE)
    ddim = diffusers.DDIMScheduler(**STABLE, clip_sample=False)
    ddim.set_timesteps(7)
    expected = [(999.0 - float(k)) / 1000.0 for k in ddim.timesteps]
    assert list(found.outer_times(7))[:-1] == pytest.approx(expected, abs=1e-9)
    wild = torch.tensor([-7.0, 0.5])
    assert torch.equal(found.thresholded(wild), wild)


def test_sigmas_of_a_table_are_noise_over_signal():
    _, found = made("EulerDiscreteScheduler", **STABLE)
    alphas = found.base.alphas_cumprod.double()
    sigmas = ((1 - alphas) / alphas).sqrt()
    chosen = [float(sigmas[k]) for k in (900, 500, 20)]
    expected = [(999.0 - k) / 1000.0 for k in (900, 500, 20)]
    assert list(found.outer_times(sigmas=[*chosen, 0.0]))[:-1] == pytest.approx(expected, abs=1e-9)
    most = float(sigmas[-1])
    assert found.outer_times(sigmas=[1.005 * most, chosen[1]])[0] == 0.0  # as published, rounded
    with pytest.raises(InvalidArgument, match=r"is from 0\.0\d+ to 14\.6"):
        found.outer_times(sigmas=[1.02 * most, chosen[1]])


def test_times_fall_towards_data_and_are_given_once():
    _, found = made("FlowMatchEulerDiscreteScheduler")
    for same in ([500.0, 500.0], [200.0, 500.0]):
        with pytest.raises(InvalidArgument, match="must fall towards data"):
            found.outer_times(timesteps=same)
    with pytest.raises(InvalidArgument, match="not both"):
        found.outer_times(timesteps=[500.0], sigmas=[0.5])


def test_estimates_are_clipped_as_the_configuration_says():
    wild = torch.tensor([[-7.0, 0.5, 3.0]])
    _, found = made("DDIMScheduler", clip_sample=True)
    assert found.thresholded(wild).tolist() == [[-1.0, 0.5, 1.0]]
    _, found = made("DDIMScheduler", clip_sample=True, clip_sample_range=2.0)
    assert found.thresholded(wild).tolist() == [[-2.0, 0.5, 2.0]]
    _, found = made("DDIMScheduler", clip_sample=False)
    assert found.thresholded(wild).tolist() == wild.tolist()
    config = {"thresholding": True, "sample_max_value": 5.0, "dynamic_thresholding_ratio": 1.0}
    scheduler, found = made("DDIMScheduler", clip_sample=False, **config)
    image = wild.view(1, 1, 3)
    assert torch.equal(found.thresholded(image), scheduler._threshold_sample(image))


@pytest.mark.parametrize(
    ("name", "config", "match"),
    [
        ("LCMScheduler", {}, "distilled to few steps"),
        ("EDMEulerScheduler", {}, "preconditioning"),
        ("VQDiffusionScheduler", {"num_vec_classes": 3}, "none of those"),
        ("FlowMatchEulerDiscreteScheduler", {"invert_sigmas": True}, "invert_sigmas"),
        ("DPMSolverMultistepScheduler", {"prediction_type": "flow_prediction"}, "use_flow_sigmas"),
    ],
)
def test_what_is_no_denoiser_is_refused(name, config, match):
    with pytest.raises(InvalidArgument, match=match):
        Schedule.of({"_class_name": name, **config})


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_times_that_a_rounded_clock_tells_apart(dtype):
    """Eighths of a timestep that neither rounding nor the division and its inverse changes."""

    def rounded(number):
        return torch.tensor(number, dtype=getattr(torch, dtype))

    every = [eighth / 8.0 for eighth in range(800, 0, -1)]
    kept = [k for k in every if float(rounded(k)) == k == float(rounded(k) / 100.0 * 100.0)]
    assert 0 < len(kept) < len(every)
    assert _told_apart(dtype, 100.0) == tuple(1.0 - k / 100.0 for k in kept)


def test_a_rounded_clock_is_part_of_the_path():
    config = {"_class_name": "FlowMatchEulerDiscreteScheduler"}
    assert isinstance(Schedule.of(config, "bfloat16").path, KnownTimes)
    for bad in ("int8", "real", "Tensor"):
        with pytest.raises(InvalidArgument, match="floating-point dtype"):
            Schedule.of(config, bad)


def test_the_prediction_is_named_or_refused():
    for told, name in (("epsilon", "epsilon"), ("v_prediction", "v"), ("sample", "sample")):
        assert made("DDIMScheduler", prediction_type=told)[1].prediction == name
    with pytest.raises(InvalidArgument, match="prediction_type='flow_prediction'"):
        Schedule.of({"_class_name": "DDIMScheduler", "prediction_type": "flow_prediction"})


def test_what_a_configuration_leaves_out_is_as_its_own_class_has_it():
    wild = torch.tensor([[-7.0, 0.5, 3.0]])
    for name, clips in (("DDIMScheduler", True), ("PNDMScheduler", False)):
        found = Schedule.of({"_class_name": name}).thresholded(wild)
        assert torch.equal(found, wild.clamp(-1.0, 1.0) if clips else wild)


@pytest.mark.parametrize("rho, steps, stops_short", [
    (1.0, 1, True), ("ddim:0", 1, True), ("ddim:1", 1, False), (0.0, 1, False), (1.0, 2, False),
])  # fmt: skip
def test_auto_ends_where_the_pipelines_own_sampler_does(rho, steps, stops_short):
    own = diffusers.DDIMScheduler(**STABLE, steps_offset=1, set_alpha_to_one=False)
    config = {**own.config, "_class_name": "DDIMScheduler"}
    scheduler = GlassScheduler.from_config(config, rho=rho, steps=steps)
    scheduler.set_timesteps(10)
    assert scheduler.table.times[-1] == (scheduler.schedule.time(0.0) if stops_short else 1.0)


def test_the_row_that_a_loop_begins_with_is_known_before_its_first_step():
    name = "FlowMatchEulerDiscreteScheduler"
    config = {**getattr(diffusers, name)().config, "_class_name": name}
    scheduler = GlassScheduler.from_config(config, rho=0.4, steps=2)
    scheduler.set_timesteps(4)
    assert scheduler.table_row == 0
    scheduler.set_begin_index(2)
    assert scheduler.table_row == 2


def test_a_particle_s_noise_is_the_first_stream_of_its_latents():
    """Whatever stands beside them: what was drawn by the scheduler before is drawn again."""
    latents = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    noise = LatentNoise(latents, seed=5)
    each = [KeyedNoise(_key(row.numpy().data, 5)) for row in latents]
    expected = torch.cat([one(3, row[None]) for one, row in zip(each, latents)])
    assert torch.equal(noise(3, latents), expected)


def test_a_timestep_without_a_value_is_not_waited_for():
    assert _on_host(torch.tensor(3.0, device="meta"), wait=True) is None
    assert _on_host(torch.tensor(3.0)) == _on_host(torch.tensor([3.0]), wait=True) == 3.0
    assert _on_host(torch.tensor([3.0, 2.0]), wait=True) is None
