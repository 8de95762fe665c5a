"""Denoiser adapters against the pipelines they stand for, on tiny random pipelines."""

import pytest
import tiny_pipelines as tiny
import torch

from glass_flows.execute import run
from glass_flows.integrations.diffusers import GlassScheduler, LatentNoise, Schedule, compile_table
from glass_flows.integrations.diffusers.families import FAMILIES, family_of
from glass_flows.integrations.diffusers.scheduler import config_of

BUILT = [name for name in tiny.FAMILIES if family_of(tiny.build(name)) is not None]
PROMPTLESS = ("dit",)


def settings(name, **changes):
    """The call's arguments without the prompt, and the prompt."""
    given = {**tiny.CALL[name], **changes}
    prompt = given.pop("prompt", None) or given.pop("class_labels", None)
    return given, prompt


@pytest.mark.parametrize("name", BUILT)
def test_the_drop_in_scheduler_equals_the_executor_through_the_adapter(name):
    """Bit for bit, with the same batch: rho = 0.4, three transitions of three evaluations."""
    pipe = tiny.build(name)
    given, prompt = settings(name)
    adapter = family_of(pipe)(pipe, **given)
    schedule = Schedule.of(config_of(pipe.scheduler))
    table = compile_table(schedule, 3, rho=0.4, steps=3, **adapter.grid(3))
    noise = torch.randn(2, *adapter.shape, generator=torch.Generator().manual_seed(5))
    prompts = list(prompt) if name in PROMPTLESS else [prompt] * 2
    denoiser = adapter.denoiser(prompts, schedule)
    with torch.no_grad():
        ours = run(table, denoiser, noise, LatentNoise(noise))
        images = adapter.decode(ours)
    pipe.scheduler = GlassScheduler.from_pipeline(pipe, rho=0.4, steps=3)
    if name in PROMPTLESS:
        pytest.skip("takes no latents: see the test with its own")
    theirs = pipe(
        prompt=prompts, **given, latents=noise, num_inference_steps=3, output_type="latent"
    ).images
    assert torch.equal(ours, theirs)
    pixels = pipe(
        prompt=prompts, **given, latents=noise, num_inference_steps=3, output_type="pt"
    ).images
    torch.testing.assert_close(images.clamp(0, 1), pixels, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", [n for n in BUILT if n not in PROMPTLESS])
def test_sizes_need_not_be_square(name):
    pipe = tiny.build(name)
    given, prompt = settings(name, height=32, width=64)
    adapter = family_of(pipe)(pipe, **given)
    schedule = Schedule.of(config_of(pipe.scheduler))
    x = torch.randn(1, *adapter.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        D = adapter.denoiser([prompt], schedule)(x, schedule.path.trained_times[0]
                                                 if schedule.discrete else 0.3)  # fmt: skip
        assert adapter.decode(D).shape == (1, 3, 32, 64)


def test_every_family_names_its_pipelines():
    for family in FAMILIES:
        assert family.pipelines
