"""What diffusers asks of every scheduler in its common test class; docs/diffusers has the list."""

import inspect

import diffusers
import numpy as np
import pytest
import torch

from cases import first
from glass_flows.diffusers import GlassScheduler, GlassSchedulerOutput

BASES = {
    "flow": diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    "discrete": diffusers.DDIMScheduler(clip_sample=False),
}


def glass(base, **options):
    own = BASES[base] if isinstance(base, str) else base
    return GlassScheduler.from_config({**own.config, "_class_name": type(own).__name__}, **options)


def sample():
    return torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def whole_run(scheduler, **options):
    scheduler.set_timesteps(5)
    x, seen = sample(), []
    for t in scheduler.timesteps:
        x = scheduler.step(0.1 * x, t, x, **options).prev_sample
        seen.append(x)
    return torch.stack(seen)


@pytest.mark.parametrize("base", first(BASES))
@pytest.mark.parametrize(
    "options",
    first(
        [
            {"rho": "ddpm", "steps": 1, "seed": 5},
            {},
            {"solver": "paper"},
            {"seed": 3, "start": "pure"},
        ]
    ),
)
def test_saved_and_loaded_it_takes_the_same_steps(base, options, tmp_path):
    if options.get("solver") == "paper" or base == "flow":
        options = {k: v for k, v in options.items() if k != "start"}
    scheduler = glass(base, **options)
    scheduler.save_config(tmp_path / "config")
    scheduler.save_pretrained(tmp_path / "pretrained")
    for folder in ("config", "pretrained"):
        loaded = GlassScheduler.from_pretrained(tmp_path / folder)
        assert torch.equal(whole_run(loaded), whole_run(scheduler))
        known = {k: v for k, v in scheduler.config.items() if not k.startswith("_")}
        assert {k: v for k, v in loaded.config.items() if k in known} == known


@pytest.mark.parametrize("base", BASES)
def test_compatible_schedulers_are_made_from_its_configuration_and_back(base):
    scheduler = glass(base, rho=0.2, seed=5)
    assert scheduler.compatibles and all(kind is not None for kind in scheduler.compatibles)
    for kind in (type(BASES[base]), GlassScheduler):
        other = kind.from_config(scheduler.config)
        back = GlassScheduler.from_config(other.config)
        names = inspect.signature(GlassScheduler.__init__).parameters
        for name in names:
            if name != "self":
                assert back.config[name] == scheduler.config[name]
    own = type(BASES[base]).from_config(scheduler.config)
    own.set_timesteps(5), BASES[base].set_timesteps(5)
    assert torch.equal(own.timesteps, BASES[base].timesteps)  # its own settings came through


@pytest.mark.parametrize("base", BASES)
def test_steps_keep_the_shape_and_the_dtype(base):
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        scheduler = glass(base)
        scheduler.set_timesteps(5)
        x = sample().to(dtype)
        for t in scheduler.timesteps[:2]:
            x = scheduler.step(0.1 * x, t, x).prev_sample
            assert x.shape == (4, 3, 8, 8) and x.dtype == dtype


@pytest.mark.parametrize("base", BASES)
def test_a_tuple_holds_what_the_output_object_holds(base):
    one, two = glass(base), glass(base)
    one.set_timesteps(5), two.set_timesteps(5)
    x = sample()
    whole = one.step(0.1 * x, one.timesteps[0], x)
    (bare,) = two.step(0.1 * x, two.timesteps[0], x, return_dict=False)
    assert isinstance(whole, GlassSchedulerOutput)
    assert torch.equal(whole.prev_sample, bare) and torch.equal(whole[0], bare)
    assert whole.pred_original_sample.shape == x.shape


@pytest.mark.parametrize("base", BASES)
def test_the_interface_that_pipelines_use(base):
    scheduler = glass(base)
    assert scheduler.init_noise_sigma == 1.0 and scheduler.order == 1 and len(scheduler) == 1000
    assert scheduler.scale_model_input(sample(), 0.0).shape == sample().shape
    arguments = inspect.signature(scheduler.set_timesteps).parameters
    assert {"num_inference_steps", "device", "timesteps", "sigmas", "mu"} <= set(arguments)
    assert "generator" in inspect.signature(scheduler.step).parameters
    scheduler.set_timesteps(5, device="cpu")
    assert len(scheduler.sigmas) == len(scheduler.timesteps) + 1
    assert scheduler.num_inference_steps == 5
    assert scheduler.begin_index is None and scheduler.step_index is None
    scheduler.set_begin_index(0)
    assert scheduler.begin_index == 0


@pytest.mark.parametrize("base", BASES)
def test_noising_keeps_shape_and_device(base):
    scheduler = glass(base)
    scheduler.set_timesteps(5)
    x = sample()
    noised = scheduler.add_noise(x, torch.randn_like(x), scheduler.timesteps[5][None])
    assert noised.shape == x.shape and noised.device == x.device


def test_it_takes_no_keywords_that_it_does_not_name():
    kinds = {p.kind for p in inspect.signature(GlassScheduler.__init__).parameters.values()}
    assert inspect.Parameter.VAR_KEYWORD not in kinds and not GlassScheduler._deprecated_kwargs


def test_trained_betas(tmp_path):
    scheduler = glass(diffusers.DDIMScheduler(trained_betas=[0.1, 0.3], clip_sample=False), steps=1)
    np.testing.assert_allclose(scheduler.alphas_cumprod, [0.9, 0.63], rtol=1e-6)
    scheduler.save_pretrained(tmp_path)
    loaded = GlassScheduler.from_pretrained(tmp_path)
    assert torch.equal(loaded.alphas_cumprod, scheduler.alphas_cumprod)


def test_attributes():
    scheduler = glass("flow")
    scheduler.an_attribute = 5
    assert scheduler.an_attribute == 5
    scheduler.register_to_config(another=6)
    with pytest.warns(FutureWarning):
        assert scheduler.another == 6
    with pytest.raises(AttributeError, match="'GlassScheduler' object has no attribute 'missing'"):
        _ = scheduler.missing


@pytest.mark.parametrize("base", BASES)
def test_a_generator_decides_where_one_is_passed(base):
    runs = [
        whole_run(glass(base), generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    ]
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])
